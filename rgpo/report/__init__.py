"""rgpo-report: results to figures, tables and a page, without torch.

Each room imports only from those before it: settings < stats < read < tables < figures, claims < page < build < cli.
"""
