"""rgpo-report: turns results into figures, tables and a page, without torch.

Each subpackage imports only from earlier ones: settings < stats < read < tables < figures, claims < page < build < cli.
"""
