/*
 * libcascade as a busy service uses it, by cascade.h alone.
 *
 *     stress share BUNDLE TARGET ENGINE_THREADS THREADS SECONDS IMAGE...
 *     stress cycle BUNDLE TARGET ENGINE_THREADS TIMES IMAGE...
 *
 * share: THREADS threads have one session for SECONDS. Each mixes calls at random: batches of
 * files, encoded images and frames, good and bad; submissions; counters; calls that are wrong. Whatever is
 * asked, an image must get the answer that it got alone, before the threads began, and the counters
 * must come out even. cycle: open, classify, submit, close, TIMES times.
 *
 * Exit status: 0 all is right, 1 an answer is not, 2 it could not begin. The threads share no
 * lock and no ordered atomic of this program, which would hide a race of the library's from a sanitizer.
 */
#define _POSIX_C_SOURCE 200809L
#include <cascade/cascade.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { MOST_CASES = 64, MOST_BATCH = 6, MOST_THREADS = 256, SHOWN = 10 };

/* An engine may round otherwise in a batch of another size; a decision may not change. */
static const double tolerance = 1e-4;

typedef struct {
    cascade_image  image;
    cascade_result alone;
} test_case;

static test_case        cases[MOST_CASES];
static size_t           case_count;
static cascade_session *session;
static double           stop_at;
static uint64_t         wrong, submitted, answered, busy, classified, refused_calls;

static void add(uint64_t *counter, uint64_t value)
{
    __atomic_fetch_add(counter, value, __ATOMIC_RELAXED);
}

static uint64_t value_of(uint64_t *counter)
{
    return __atomic_load_n(counter, __ATOMIC_RELAXED);
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void pause_ms(long milliseconds)
{
    const struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000L};
    nanosleep(&time, NULL);
}

static uint64_t draw(uint64_t *seed, uint64_t below)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed % below;
}

static void expect(int holds, const char *what, size_t number)
{
    if (holds)
        return;
    if (__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED) < SHOWN)
        fprintf(stderr, "wrong: %s (case %zu): %s\n", what, number, cascade_last_error());
}

static void cannot(const char *what, const char *why)
{
    fprintf(stderr, "%s: %s\n", what, why);
    exit(2);
}

/* --------------------------------------------------------------------------------------- images */

static void add_case(cascade_image image)
{
    if (case_count == MOST_CASES)
        cannot("images", "too many");
    cases[case_count++].image = image;
}

/* Memory of exactly `size` bytes: whoever reads one more is seen. Lives as long as the program. */
static unsigned char *memory(size_t size)
{
    unsigned char *made = malloc(size == 0 ? 1 : size);
    if (made == NULL)
        cannot("memory", "none left");
    return made;
}

static void add_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0)
        cannot(path, "cannot be read");
    const size_t size = (size_t)ftell(file);
    unsigned char *whole = memory(size), *half = memory(size / 2), *changed = memory(size);
    rewind(file);
    if (fread(whole, 1, size, file) != size)
        cannot(path, "cannot be read");
    fclose(file);
    memcpy(half, whole, size / 2);
    memcpy(changed, whole, size);
    for (size_t i = size / 3; i < size; i += 97)
        changed[i] ^= 0x55;
    add_case(cascade_file(path));
    add_case(cascade_encoded(whole, size));
    add_case(cascade_encoded(half, size / 2));
    add_case(cascade_encoded(changed, size));
}

/* Colour that runs over the frame, its rows padded; `missing` bytes too few make it unreadable. */
static void add_frame(cascade_format format, uint32_t width, uint32_t height, size_t padding,
                      size_t missing)
{
    static const size_t samples[] = {3, 3, 4, 4, 1, 1};
    const size_t stride = width * samples[format] + padding;
    const size_t rows = format == CASCADE_NV12 ? height + (height + 1) / 2 : height;
    const size_t size = stride * rows - padding - missing;
    unsigned char *pixels = memory(size);
    for (size_t i = 0; i < size; i++)
        pixels[i] = (unsigned char)(i * 7 / 64 + (size_t)format * 40);
    cascade_image image = cascade_frame(format, width, height, pixels, size);
    image.stride = stride;
    image.chroma_stride = format == CASCADE_NV12 ? stride : 0;
    add_case(image);
}

static void add_cases(int count, char **paths)
{
    for (int i = 0; i < count; i++)
        add_file(paths[i]);
    for (cascade_format format = CASCADE_RGB; format <= CASCADE_NV12; format++) {
        add_frame(format, 48, 32, 0, 0);
        add_frame(format, 35, 50, 13, 0);
    }
    add_frame(CASCADE_RGB, 64, 64, 0, 1);
    add_frame(CASCADE_NV12, 64, 64, 0, 1);
    add_case(cascade_encoded(NULL, 0));
    add_case(cascade_file("/nowhere/at/all.jpg"));
}

/* -------------------------------------------------------------------------------------- answers */

static int near(double a, double b)
{
    return isnan(a) ? isnan(b) : fabs(a - b) <= tolerance;
}

static int same(const cascade_result *a, const cascade_result *b)
{
    return a->status == b->status && a->decision == b->decision && a->reason == b->reason &&
           a->stage == b->stage && a->set == b->set && near(a->p, b->p) &&
           near(a->score, b->score) && strcmp(a->message, b->message) == 0;
}

static void answer_alone(void)
{
    for (size_t i = 0; i < case_count; i++) {
        test_case *one = &cases[i];
        one->alone.struct_size = sizeof one->alone;
        if (cascade_classify(session, &one->image, 1, &one->alone) != CASCADE_OK)
            cannot("cascade_classify", cascade_last_error());
    }
    classified = case_count;
}

static void on_answer(const cascade_result *result, void *user)
{
    const test_case *asked = user;
    expect(same(result, &asked->alone), "submitted", (size_t)(asked - cases));
    add(&answered, 1);
}

static void classify_some(uint64_t *seed)
{
    cascade_image  images[MOST_BATCH];
    cascade_result results[MOST_BATCH];
    size_t         which[MOST_BATCH];
    const size_t   count = 1 + draw(seed, MOST_BATCH);
    for (size_t i = 0; i < count; i++) {
        which[i] = draw(seed, case_count);
        images[i] = cases[which[i]].image;
    }
    results[0].struct_size = sizeof results[0];
    expect(cascade_classify(session, images, count, results) == CASCADE_OK, "status", which[0]);
    for (size_t i = 0; i < count; i++)
        expect(same(&results[i], &cases[which[i]].alone), "classified", which[i]);
    add(&classified, count);
}

static void submit_one(size_t which)
{
    const cascade_status status =
        cascade_submit(session, &cases[which].image, on_answer, &cases[which]);
    expect(status == CASCADE_OK || status == CASCADE_BUSY, "submit", which);
    add(status == CASCADE_OK ? &submitted : &busy, 1);
}

static void look(uint64_t *last)
{
    cascade_stats stats = {.struct_size = sizeof stats};
    cascade_info  info = {.struct_size = sizeof info};
    expect(cascade_get_stats(session, &stats) == CASCADE_OK, "stats", 0);
    expect(stats.images >= *last && stats.failures == 0, "counters go back", 0);
    expect(cascade_get_info(session, &info) == CASCADE_OK && info.stages > 0, "info", 0);
    *last = stats.images;
}

/* The message is this thread's own, and says what this thread did. */
static void call_wrongly(uint64_t kind)
{
    if (kind == 0) {
        expect(cascade_classify(session, NULL, 1, NULL) == CASCADE_USAGE, "null images", 0);
        expect(strcmp(cascade_last_error(), "images is null") == 0, "message", 0);
    } else {
        expect(cascade_submit(session, NULL, on_answer, NULL) == CASCADE_USAGE, "null image", 0);
        expect(strcmp(cascade_last_error(), "image is null") == 0, "message", 1);
    }
    add(&refused_calls, 1);
}

static void *work(void *user)
{
    uint64_t seed = 0x9e3779b97f4a7c15u * (1 + (uint64_t)(size_t)user), last = 0;
    while (seconds() < stop_at) {
        const uint64_t turn = draw(&seed, 16);
        if (turn < 8)
            classify_some(&seed);
        else if (turn < 13)
            submit_one(draw(&seed, case_count));
        else if (turn < 15)
            look(&last);
        else
            call_wrongly(draw(&seed, 2));
    }
    return NULL;
}

/* ------------------------------------------------------------------------------------ the modes */

static void open_session(char **arguments)
{
    cascade_options options;
    cascade_default_options(&options, sizeof options);
    options.target = arguments[1];
    options.threads = (uint32_t)atoi(arguments[2]);
    options.self_test = 1;
    options.warm_up = 0;
    options.max_batch = 8;
    options.max_delay_us = 500;
    options.queue_capacity = 16;
    if (cascade_open(arguments[0], &options, &session) != CASCADE_OK)
        cannot(arguments[0], cascade_last_error());
}

/* Each image once, whoever asked; a submission is counted before its callback is called. */
static void expect_even_counters(void)
{
    cascade_stats stats = {.struct_size = sizeof stats};
    cascade_get_stats(session, &stats);
    expect(stats.images == value_of(&classified) + value_of(&submitted), "images", stats.images);
    expect(stats.images == stats.acted + stats.deferred + stats.unreadable, "sum", stats.images);
    expect(stats.submitted.count == value_of(&submitted), "histogram", stats.submitted.count);
    expect(stats.refused == value_of(&busy), "refused", stats.refused);
    expect(stats.failures == 0 && stats.queued == 0, "failures", stats.failures);
}

static void share(char **arguments, int threads, double duration)
{
    pthread_t started[MOST_THREADS];
    open_session(arguments);
    answer_alone();
    const double begun = seconds();
    stop_at = begun + duration;
    for (int i = 0; i < threads; i++) {
        if (pthread_create(&started[i], NULL, work, (void *)(size_t)i) != 0)
            cannot("threads", "cannot be started");
    }
    for (int i = 0; i < threads; i++)
        pthread_join(started[i], NULL);
    const double took = seconds() - begun;
    for (int i = 0; i < 3000 && value_of(&answered) != value_of(&submitted); i++)
        pause_ms(10);
    expect_even_counters();
    for (size_t i = 0; i < case_count; i++)
        submit_one(i); /* some wait when it is closed, and are answered all the same */
    cascade_close(session);
    expect(value_of(&answered) == value_of(&submitted), "answered", value_of(&answered));
    printf("share: %d threads, %.1f s, %zu cases, %llu classified, %llu submitted, %llu busy, "
           "%llu refused calls, %llu wrong\n",
           threads, took, case_count, (unsigned long long)classified,
           (unsigned long long)submitted, (unsigned long long)busy,
           (unsigned long long)refused_calls, (unsigned long long)wrong);
}

static void cycle(char **arguments, int times)
{
    const double begun = seconds();
    for (int i = 0; i < times; i++) {
        open_session(arguments);
        if (i == 0)
            answer_alone();
        test_case *one = &cases[(size_t)i % case_count];
        cascade_result result = {.struct_size = sizeof result};
        expect(cascade_classify(session, &one->image, 1, &result) == CASCADE_OK, "status", 0);
        expect(same(&result, &one->alone), "classified", (size_t)i);
        submit_one((size_t)i % case_count);
        cascade_close(session);
        cascade_session *none = (cascade_session *)one; /* anything but null */
        expect(cascade_open("/nowhere/at/all.cascade", NULL, &none) == CASCADE_BUNDLE, "open", 0);
        expect(none == NULL, "no session", 0);
    }
    expect(answered == submitted, "answered", answered);
    printf("cycle: %d times, %.1f s, %zu cases, %llu wrong\n", times, seconds() - begun,
           case_count, (unsigned long long)wrong);
}

int main(int argc, char **argv)
{
    const int sharing = argc > 7 && strcmp(argv[1], "share") == 0;
    if (!sharing && !(argc > 6 && strcmp(argv[1], "cycle") == 0))
        cannot("usage", "stress share BUNDLE TARGET ENGINE_THREADS THREADS SECONDS IMAGE... | "
                        "cycle BUNDLE TARGET ENGINE_THREADS TIMES IMAGE...");
    const int number = atoi(argv[5]);
    if (number < 1 || (sharing && number > MOST_THREADS))
        cannot(argv[5], "must be 1 to 256 threads, or times");
    const int first = sharing ? 7 : 6;
    add_cases(argc - first, argv + first);
    if (sharing)
        share(argv + 2, number, atof(argv[6]));
    else
        cycle(argv + 2, number);
    return value_of(&wrong) == 0 ? 0 : 1;
}
