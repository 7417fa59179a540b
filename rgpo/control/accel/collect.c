/* Steps of MuJoCo's and CartPole's environments under an MLP, in one call: the loop of rgpo.control.task.Control.collect.

   Every operation is numpy's, in numpy's order, and matrix products and tanh, cos and sin are numpy's own functions, so that
   results are the same bits as without this file. layout.py and envs/native.py have its structs. E environments, D observation numbers, O outputs. */

#if defined(__FAST_MATH__)
#error "numbers would differ from those of numpy"
#endif

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

typedef int64_t Int;
typedef void (*Ufunc)(char **operands, const Int *count, const Int *strides, void *data);
typedef void (*Sgemm)(int, int, int, Int, Int, Int, float, const float *, Int, const float *, Int, float, float *, Int);
typedef void (*Sgemv)(int, int, Int, Int, float, const float *, Int, const float *, Int, float, float *, Int);
typedef void (*Dgemv)(int, int, Int, Int, double, const double *, Int, const double *, Int, double, double *, Int);
enum { ROWS = 101, PLAIN = 111, TRANSPOSED = 112 }; /* of BLAS */

typedef struct { Ufunc call; void *data; } Function;
typedef struct { Sgemm sgemm; Sgemv sgemv; Dgemv dgemv; Function tanh, cos, sin; } Numpy;

typedef struct { Int inputs, outputs; const float *weight, *bias; float *out; } Layer; /* out (E, outputs) */
typedef struct { Int num_layers; const Layer *layers; Int is_tanh; } Network;

typedef struct { double *mean, *squares, *gap, *sum; const double *ones; double count, epsilon, clip; } Normalizer; /* (D), gap (E, D), ones (E) */

typedef struct { void *data; double *ctrl; const double *qpos, *qvel, *torso, *pushes; double *x; } Body; /* torso, pushes: or null */
typedef struct {
    const void *model;
    void (*step)(const void *, void *), (*find_forces)(const void *, void *);
    Int frame_skip, nq, nv, nu, num_hidden, num_forces, num_threads;
    const Body *bodies;
    double *coordinates, *forces; /* (E, nq + nv), (E, num_forces) */
    const float *low, *high;      /* (E, nu) */
    double velocity_clip;
    Int first, last;               /* monitored coordinates, and their bounds (E, last - first) */
    const double *lowest, *highest;
    char *healthy;                 /* (E) */
    double *kept_distance;         /* (T, E, ...) of every step */
    float *kept_action;
    char *kept_healthy;
    double *kept_forces;
} Mujoco;

typedef struct { /* (4, E) */
    double *state;
    double force, pole_moment, mass, pole_mass, gravity, length, dt, max_x, max_angle;
    double *cos, *sin; /* (E) */
} Cart;

typedef struct {
    Int num_envs, size, outputs; /* E, D, O */
    const Numpy *numpy;
    const Network *network;
    Normalizer *normalizer; /* null: observations are taken as they are */
    const Mujoco *mujoco;   /* of the two, one is null */
    const Cart *cart;
    double *observation; /* (E, D) of the environments */
    char *terminated;    /* (E) */
    float *seen;         /* (T, E, D) as the policy sees them */
    const float *noise;  /* (T, E, O) */
    void *actions;       /* (T, E, O) float, or (T, E) Int of CartPole */
} Job;

static void apply(const Function *f, void *x, Int count, Int bytes) {
    char *operands[] = {x, x};
    Int strides[] = {bytes, bytes};
    f->call(operands, &count, strides, f->data);
}

/* y = x W + b, then tanh or max(0, y), but for the last layer's y. Returns the last out (E, O). */
static float *network(const Job *job, const float *x) {
    const Network *net = job->network;
    Int n = job->num_envs;
    float *y = 0;
    for (Int i = 0; i < net->num_layers; i++) {
        const Layer *l = &net->layers[i];
        y = l->out;
        if (n == 1)
            job->numpy->sgemv(ROWS, TRANSPOSED, l->inputs, l->outputs, 1, l->weight, l->outputs, x, 1, 0, y, 1);
        else
            job->numpy->sgemm(ROWS, PLAIN, PLAIN, n, l->outputs, l->inputs, 1, x, l->inputs, l->weight, l->outputs, 0, y, l->outputs);
        for (Int e = 0; e < n; e++)
            for (Int k = 0; k < l->outputs; k++) y[e * l->outputs + k] += l->bias[k];
        if (i + 1 < net->num_layers) {
            if (net->is_tanh)
                apply(&job->numpy->tanh, y, n * l->outputs, sizeof *y);
            else
                for (Int k = 0; k < n * l->outputs; k++) y[k] = y[k] < 0 ? 0 : y[k];
        }
        x = y;
    }
    return y;
}

static void sum_rows(const Job *job, const double *x, double *sum) {
    Int n = job->num_envs, size = job->size;
    if (n == 1)
        memcpy(sum, x, size * sizeof *x);
    else
        job->numpy->dgemv(ROWS, TRANSPOSED, n, size, 1, x, size, job->normalizer->ones, 1, 0, sum, 1);
}

/* ObservationNormalizer.__call__: moments, then clip((o - mean) / std). out (E, D) */
static void normalize(const Job *job, float *out) {
    Normalizer *norm = job->normalizer;
    Int n = job->num_envs, size = job->size;
    const double *o = job->observation;
    if (!norm) {
        for (Int i = 0; i < n * size; i++) out[i] = (float)o[i];
        return;
    }
    double *gap = norm->gap, *sum = norm->sum;
    for (Int e = 0; e < n; e++)
        for (Int k = 0; k < size; k++) gap[e * size + k] = o[e * size + k] - norm->mean[k];
    sum_rows(job, gap, sum);
    norm->count += (double)n;
    for (Int k = 0; k < size; k++) norm->mean[k] += sum[k] / norm->count;
    for (Int e = 0; e < n; e++)
        for (Int k = 0; k < size; k++) gap[e * size + k] *= o[e * size + k] - norm->mean[k];
    sum_rows(job, gap, sum);
    for (Int k = 0; k < size; k++) {
        norm->squares[k] += sum[k];
        sum[k] = sqrt(norm->squares[k] / norm->count + norm->epsilon);
    }
    for (Int e = 0; e < n; e++)
        for (Int k = 0; k < size; k++) {
            double z = (o[e * size + k] - norm->mean[k]) / sum[k];
            z = z < -norm->clip ? -norm->clip : z; /* NaN stays NaN, as in numpy */
            out[e * size + k] = (float)(z > norm->clip ? norm->clip : z);
        }
}

/* MujocoVector.step of environment e, but for the time limit and new episodes. */
static void step_body(const Job *job, Int t, Int e) {
    const Mujoco *m = job->mujoco;
    const Body *body = &m->bodies[e];
    Int row = t * job->num_envs + e, size = m->nq + m->nv, moving = size - m->num_hidden;
    const float *action = (float *)job->actions + row * m->nu;
    for (Int k = 0; k < m->nu; k++) {
        float low = m->low[e * m->nu + k], high = m->high[e * m->nu + k], a = action[k] < low ? low : action[k];
        body->ctrl[k] = m->kept_action[row * m->nu + k] = a > high ? high : a;
    }
    double before = *body->x, *coordinates = m->coordinates + e * size, *o = job->observation + e * job->size;
    for (Int k = 0; k < m->frame_skip; k++) m->step(m->model, body->data);
    if (body->pushes) m->find_forces(m->model, body->data);
    memcpy(coordinates, body->qpos, m->nq * sizeof *o);
    memcpy(coordinates + m->nq, body->qvel, m->nv * sizeof *o);
    if (body->torso) *body->x = *body->torso;
    m->kept_distance[row] = *body->x - before;
    memcpy(o, coordinates + m->num_hidden, moving * sizeof *o);
    for (Int k = m->nq - m->num_hidden; k < moving; k++) {
        double v = o[k] < -m->velocity_clip ? -m->velocity_clip : o[k];
        o[k] = v > m->velocity_clip ? m->velocity_clip : v;
    }
    if (body->pushes) {
        double *forces = m->forces + e * m->num_forces;
        for (Int k = 0; k < m->num_forces; k++) {
            double f = body->pushes[k] < -1 ? -1 : body->pushes[k];
            forces[k] = f > 1 ? 1 : f;
        }
        memcpy(m->kept_forces + row * m->num_forces, forces, m->num_forces * sizeof *o);
        memcpy(o + moving, forces + 6, (m->num_forces - 6) * sizeof *o);
    }
    if (m->first < m->last) {
        Int width = m->last - m->first, ok = 1;
        for (Int k = 0; k < width; k++) {
            double c = coordinates[m->first + k];
            ok &= m->lowest[e * width + k] < c && c < m->highest[e * width + k];
        }
        m->kept_healthy[row] = m->healthy[e] = (char)ok;
        job->terminated[e] = !ok;
    }
}

/* CartPoleVector.step, in its order of operations. */
static void step_carts(const Job *job, Int t) {
    const Cart *c = job->cart;
    Int n = job->num_envs;
    const Int *action = (Int *)job->actions + t * n;
    double *x = c->state, *speed = x + n, *angle = speed + n, *turn = angle + n;
    memcpy(c->cos, angle, n * sizeof *x);
    memcpy(c->sin, angle, n * sizeof *x);
    apply(&job->numpy->cos, c->cos, n, sizeof *x);
    apply(&job->numpy->sin, c->sin, n, sizeof *x);
    for (Int e = 0; e < n; e++) {
        double cos = c->cos[e], sin = c->sin[e], force = action[e] == 1 ? c->force : -c->force;
        double push = (force + c->pole_moment * (turn[e] * turn[e]) * sin) / c->mass;
        double turning = (c->gravity * sin - cos * push) / (c->length * (4.0 / 3.0 - c->pole_mass * (cos * cos) / c->mass));
        double pushing = push - c->pole_moment * turning * cos / c->mass;
        x[e] += c->dt * speed[e];
        speed[e] += c->dt * pushing;
        angle[e] += c->dt * turn[e];
        turn[e] += c->dt * turning;
        job->terminated[e] = fabs(x[e]) > c->max_x || fabs(angle[e]) > c->max_angle;
        for (Int k = 0; k < 4; k++) job->observation[e * 4 + k] = (float)x[k * n + e];
    }
}

/* The action of the policy at seen[t]. */
static void act(const Job *job, Int t) {
    Int n = job->num_envs, size = job->outputs;
    float *y = network(job, job->seen + t * n * job->size);
    const float *noise = job->noise + t * n * size;
    for (Int k = 0; k < n * size; k++) y[k] += noise[k];
    if (job->mujoco)
        memcpy((float *)job->actions + t * n * size, y, n * size * sizeof *y);
    else /* argmax; NaN counts as largest, as in numpy */
        for (Int e = 0; e < n; e++) ((Int *)job->actions)[t * n + e] = !(y[2 * e + 1] <= y[2 * e]) && y[2 * e] == y[2 * e];
}

/* The environments' observation as the policy sees it, at seen[t]. */
static void prepare(const Job *job, Int t) { normalize(job, job->seen + t * job->num_envs * job->size); }

/* The first step without the environments, to be compared with numpy's. */
void prepare_and_act(const Job *job) {
    prepare(job, 0);
    act(job, 0);
}

/* Threads that step a share of the bodies each. They try for some 50 us whether the next step has begun, and then sleep. */
enum { TRIES = 100, MOST_THREADS = 256 };
typedef struct {
    const Job *job;
    Int t, num_threads;
    atomic_long turn, left; /* steps begun; threads that are at work on the last one */
    atomic_int stops;
    pthread_mutex_t mutex;
    pthread_cond_t begins;
} Crew;
typedef struct { Crew *crew; Int index; pthread_t thread; } Member;

static void step_share(const Crew *crew, Int index) {
    for (Int e = index; e < crew->job->num_envs; e += crew->num_threads) step_body(crew->job, crew->t, e);
}

static void *work(void *argument) {
    Member *member = argument;
    Crew *crew = member->crew;
    for (long turn = 1;; turn++) {
        for (Int i = 0; i < TRIES && atomic_load(&crew->turn) < turn; i++) sched_yield();
        if (atomic_load(&crew->turn) < turn) {
            pthread_mutex_lock(&crew->mutex);
            while (atomic_load(&crew->turn) < turn) pthread_cond_wait(&crew->begins, &crew->mutex);
            pthread_mutex_unlock(&crew->mutex);
        }
        if (atomic_load(&crew->stops)) return 0;
        step_share(crew, member->index);
        atomic_fetch_sub(&crew->left, 1);
    }
}

static void begin_turn(Crew *crew) {
    pthread_mutex_lock(&crew->mutex);
    atomic_fetch_add(&crew->turn, 1);
    pthread_cond_broadcast(&crew->begins);
    pthread_mutex_unlock(&crew->mutex);
}

static void step_bodies(Crew *crew, Int t) {
    crew->t = t;
    if (crew->num_threads > 1) {
        atomic_store(&crew->left, crew->num_threads - 1);
        begin_turn(crew);
    }
    step_share(crew, 0);
    while (atomic_load(&crew->left) > 0) sched_yield();
}

/* Steps t = first..last-1, or to the first one in which an episode terminates; seen[first] is given. Returns the next t. */
Int collect(const Job *job, Int first, Int last) {
    Crew crew = {.job = job, .num_threads = 1, .mutex = PTHREAD_MUTEX_INITIALIZER, .begins = PTHREAD_COND_INITIALIZER};
    Member members[MOST_THREADS];
    Int wanted = job->mujoco ? job->mujoco->num_threads : 1, t = first, ends = 0;
    for (Int i = 1; i < wanted && i < MOST_THREADS; i++, crew.num_threads++) { /* fewer where the machine has no more */
        members[i] = (Member){.crew = &crew, .index = i};
        if (pthread_create(&members[i].thread, 0, work, &members[i])) break;
    }
    while (t < last && !ends) {
        if (t > first) prepare(job, t);
        act(job, t);
        if (job->mujoco)
            step_bodies(&crew, t);
        else
            step_carts(job, t);
        t++;
        for (Int e = 0; e < job->num_envs; e++) ends |= job->terminated[e];
    }
    atomic_store(&crew.stops, 1);
    begin_turn(&crew);
    for (Int i = 1; i < crew.num_threads; i++) pthread_join(members[i].thread, 0);
    return t;
}
