// SPDX-License-Identifier: LGPL-2.1-or-later
// A queue under a mutex and threads that take from it. Signals are blocked in the threads: the
// program's own threads handle them.
#include "host/worker-pool.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

struct WorkerPool {
    Loop *loop;
    unsigned max_threads;  // loop thread only
    atomic_uint n_jobs;    // queued or running
    pthread_mutex_t mutex; // protects all below
    pthread_cond_t work_came;
    WorkerJob *first, *last;
    unsigned n_idle;
    bool is_ending;
    unsigned n_threads, capacity; // loop thread only, like the array
    pthread_t *threads;
};

static void *worker(void *arg)
{
    WorkerPool *pool = arg;
    pthread_mutex_lock(&pool->mutex);
    for (;;) {
        while (!pool->first && !pool->is_ending) {
            pool->n_idle++;
            pthread_cond_wait(&pool->work_came, &pool->mutex);
            pool->n_idle--;
        }
        WorkerJob *job = pool->first;
        if (!job)
            break;
        pool->first = job->next;
        pthread_mutex_unlock(&pool->mutex);
        job->run(job);
        // Before the message: whoever gets it and submits the next must not take us for busy.
        atomic_fetch_sub_explicit(&pool->n_jobs, 1, memory_order_relaxed);
        loop_post(pool->loop, &job->call); // `job` may be gone
        pthread_mutex_lock(&pool->mutex);
    }
    pthread_mutex_unlock(&pool->mutex);
    return NULL;
}

static int start_thread(WorkerPool *pool)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int r = -pthread_create(&pool->threads[pool->n_threads], NULL, worker, pool);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (r < 0)
        return r;
    pthread_setname_np(pool->threads[pool->n_threads], "worker");
    pool->n_threads++;
    return 0;
}

WorkerPool *worker_pool_new(Loop *loop, unsigned max_threads)
{
    WorkerPool *pool = g_new0(WorkerPool, 1);
    pool->loop = loop;
    worker_pool_set_max(pool, max_threads);
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->work_came, NULL);
    return pool;
}

void worker_pool_set_max(WorkerPool *pool, unsigned max_threads)
{
    pool->max_threads = max_threads;
    if (pool->capacity >= max_threads)
        return;
    pool->threads = g_renew(pthread_t, pool->threads, max_threads);
    pool->capacity = max_threads;
}

void worker_pool_free(WorkerPool *pool)
{
    if (!pool)
        return;
    pthread_mutex_lock(&pool->mutex);
    assert(!pool->first);
    pool->is_ending = true;
    pthread_cond_broadcast(&pool->work_came);
    pthread_mutex_unlock(&pool->mutex);
    for (unsigned i = 0; i < pool->n_threads; i++)
        pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->work_came);
    pthread_mutex_destroy(&pool->mutex);
    g_free(pool->threads);
    g_free(pool);
}

int worker_pool_submit(WorkerPool *pool, WorkerJob *job)
{
    if (pool->n_threads == 0 && start_thread(pool) < 0)
        return -EAGAIN;
    unsigned n_jobs = atomic_fetch_add_explicit(&pool->n_jobs, 1, memory_order_relaxed) + 1;
    job->next = NULL;
    pthread_mutex_lock(&pool->mutex);
    if (pool->first)
        pool->last->next = job;
    else
        pool->first = job;
    pool->last = job;
    bool wake = pool->n_idle > 0;
    pthread_mutex_unlock(&pool->mutex);
    if (wake)
        pthread_cond_signal(&pool->work_came);
    if (n_jobs > pool->n_threads && pool->n_threads < pool->max_threads)
        start_thread(pool); // without it the job waits for another to end
    return 0;
}
