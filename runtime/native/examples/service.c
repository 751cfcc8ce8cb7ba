/*
 * A service that stays up: the path of an image a line in, an answer a line out.
 *
 *     service_c BUNDLE [THREADS [EVERY]] < PATHS
 *
 * THREADS (4) take what waits, a few paths at a time, and decide them in one call. Answers come as
 * they are ready; a line begins with its path:
 *
 *     frame.jpg: roadwork, p 0.9994, stage 0
 *     night.jpg: deferred: below threshold
 *     notes.jpg: unreadable: not an image of a known format (JPEG, PNG, WEBP)
 *
 * Whoever writes faster than images are decided waits at the pipe. The service itself allocates
 * nothing once it runs, and reports counters and resident memory on standard error, after every
 * EVERY (1000) images and at the end: that of its input, or SIGTERM, which answers first what was
 * read. A thread that must not wait would use cascade_submit instead; see classify.cpp.
 */
#define _POSIX_C_SOURCE 200809L

#include <cascade/cascade.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { NAME = 4096, WAITING = 64, BATCH = 8, MAX_THREADS = 256 };

typedef struct service {
    cascade_session *session;
    uint64_t         every;

    pthread_mutex_t lock; /* of all below */
    pthread_cond_t  filled, emptied;
    char            names[WAITING][NAME]; /* a ring */
    size_t          first, count;
    int             ending;

    pthread_mutex_t output; /* of all below, and of standard output */
    uint64_t        answered;
    int             failed;
} service;

static double resident_mib(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL)
        return 0;
    if (fscanf(file, "%*s %ld", &pages) != 1)
        pages = 0;
    fclose(file);
    return (double)pages * (double)sysconf(_SC_PAGESIZE) / (1 << 20);
}

static void report(const service *s)
{
    cascade_stats stats = {.struct_size = sizeof stats};
    if (cascade_get_stats(s->session, &stats) != CASCADE_OK)
        return;
    fprintf(stderr,
            "images %" PRIu64 ", acted %" PRIu64 ", deferred %" PRIu64 ", unreadable %" PRIu64
            ", failures %" PRIu64 ", resident %.1f MiB\n",
            stats.images, stats.acted, stats.deferred, stats.unreadable, stats.failures,
            resident_mib());
}

static void print_answer(const service *s, const char *name, const cascade_result *result)
{
    if (result->status != CASCADE_OK)
        printf("%s: unreadable: %s\n", name, result->message);
    else if (result->decision < 0)
        printf("%s: deferred: %s\n", name, cascade_reason_text(result->reason));
    else
        printf("%s: %s, p %.4f, stage %d\n", name,
               cascade_class_name(s->session, result->decision), result->p, result->stage);
}

/* Decide some images and answer each, also where the call as a whole has failed: the next may not. */
static void answer(service *s, char (*names)[NAME], size_t count)
{
    cascade_image images[BATCH];
    cascade_result results[BATCH];
    for (size_t i = 0; i < count; i++) {
        images[i] = cascade_file(names[i]);
        memset(&results[i], 0, sizeof results[i]);
        results[i].struct_size = sizeof results[i];
    }
    const cascade_status status = cascade_classify(s->session, images, count, results);

    pthread_mutex_lock(&s->output);
    for (size_t i = 0; i < count; i++) {
        if (status == CASCADE_OK)
            print_answer(s, names[i], &results[i]);
        else
            printf("%s: failed: %s\n", names[i], cascade_last_error());
    }
    fflush(stdout);
    if (status != CASCADE_OK)
        s->failed = 1;
    const uint64_t before = s->answered;
    s->answered += count;
    if (s->answered / s->every != before / s->every)
        report(s);
    pthread_mutex_unlock(&s->output);
}

/* What waits, at most BATCH; 0: there will be no more. */
static size_t take(service *s, char (*names)[NAME])
{
    size_t count = 0;
    pthread_mutex_lock(&s->lock);
    while (s->count == 0 && !s->ending)
        pthread_cond_wait(&s->filled, &s->lock);
    for (; count < BATCH && s->count > 0; s->count--) {
        strcpy(names[count++], s->names[s->first]);
        s->first = (s->first + 1) % WAITING;
    }
    pthread_cond_signal(&s->emptied);
    pthread_mutex_unlock(&s->lock);
    return count;
}

static void *work(void *argument)
{
    service *s = argument;
    char names[BATCH][NAME];
    size_t count;
    while ((count = take(s, names)) > 0)
        answer(s, names, count);
    return NULL;
}

static void put(service *s, const char *name)
{
    pthread_mutex_lock(&s->lock);
    while (s->count == WAITING)
        pthread_cond_wait(&s->emptied, &s->lock);
    strcpy(s->names[(s->first + s->count++) % WAITING], name);
    pthread_cond_signal(&s->filled);
    pthread_mutex_unlock(&s->lock);
}

static void end(service *s)
{
    pthread_mutex_lock(&s->lock);
    s->ending = 1;
    pthread_cond_broadcast(&s->filled);
    pthread_mutex_unlock(&s->lock);
}

/* One line into `name`, however long it is; what cannot be a file's name is answered here. */
static int read_name(service *s, char name[NAME])
{
    for (;;) {
        size_t length = 0;
        int zero = 0, c;
        while ((c = getchar()) != EOF && c != '\n') {
            zero |= c == 0;
            if (length++ < NAME - 1)
                name[length - 1] = (char)c;
        }
        if (c == EOF && length == 0)
            return 0;
        name[length < NAME ? length : NAME - 1] = '\0';
        if (length > 0 && length < NAME && !zero)
            return 1;
        pthread_mutex_lock(&s->output);
        printf("%s: unreadable: is no usable file name (%s)\n", name,
               zero ? "it contains a zero byte" : length == 0 ? "it is empty" : "it is too long");
        fflush(stdout);
        pthread_mutex_unlock(&s->output);
    }
}

/* Reading then ends, now or when it is next tried. */
static void stop(int number)
{
    (void)number;
    close(STDIN_FILENO);
}

/* Only this thread is to be stopped: those that start while the signal is blocked keep it so. */
static void block_stop(int how)
{
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    pthread_sigmask(how, &signals, NULL);
}

static void log_line(cascade_log_level level, const char *message, void *user)
{
    (void)level;
    (void)user;
    fprintf(stderr, "%s\n", message);
}

static int run(service *s, size_t threads)
{
    static char name[NAME];
    pthread_t workers[MAX_THREADS];
    size_t started = 0;
    while (started < threads && pthread_create(&workers[started], NULL, work, s) == 0)
        started++;
    if (started < threads) {
        fprintf(stderr, "only %zu of %zu threads could be started\n", started, threads);
        s->failed = 1;
    } else {
        struct sigaction action = {.sa_handler = stop};
        sigaction(SIGTERM, &action, NULL);
        block_stop(SIG_UNBLOCK);
        while (read_name(s, name))
            put(s, name);
    }
    end(s);
    for (size_t i = 0; i < started; i++)
        pthread_join(workers[i], NULL);
    report(s);
    return s->failed ? CASCADE_FAILURE : CASCADE_OK;
}

int main(int argc, char **argv)
{
    static service s = {.lock = PTHREAD_MUTEX_INITIALIZER,
                        .filled = PTHREAD_COND_INITIALIZER,
                        .emptied = PTHREAD_COND_INITIALIZER,
                        .output = PTHREAD_MUTEX_INITIALIZER};
    const unsigned long threads = argc > 2 ? strtoul(argv[2], NULL, 10) : 4;
    s.every = argc > 3 ? strtoul(argv[3], NULL, 10) : 1000;
    if (argc < 2 || argc > 4 || threads < 1 || threads > MAX_THREADS || s.every < 1) {
        fprintf(stderr, "usage: %s BUNDLE [THREADS [EVERY]] < PATHS\n", argv[0]);
        return CASCADE_USAGE;
    }
    block_stop(SIG_BLOCK);
    cascade_options options;
    cascade_default_options(&options, sizeof options);
    options.log = log_line;
    const cascade_status status = cascade_open(argv[1], &options, &s.session);
    if (status != CASCADE_OK) {
        fprintf(stderr, "%s: %s\n", argv[1], cascade_last_error());
        return status;
    }
    const int worst = run(&s, threads);
    cascade_close(s.session);
    return worst;
}
