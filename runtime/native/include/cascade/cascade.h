/*
 * libcascade: opens a certified bundle and answers from it. C99, and C++.
 *
 * In the order in which one calls:
 *
 *     cascade_options options;
 *     cascade_default_options(&options, sizeof options);
 *     cascade_session *session;
 *     if (cascade_open("roadworks.cascade", &options, &session) != CASCADE_OK)
 *         puts(cascade_last_error());
 *     cascade_image image = cascade_file("frame.jpg");
 *     cascade_result result = {.struct_size = sizeof result};
 *     cascade_classify(session, &image, 1, &result);
 *     cascade_close(session);
 *
 * Lifetime. A session is opened once, does not change, and may be used by any number of threads at
 * once; whoever closes it makes sure that none uses it any more. Everything that a function takes
 * stays the caller's, and is looked at during the call only, but for what `cascade_submit` is given.
 * Results are written into memory of the caller. Text that a session hands out (info, class names)
 * lives until it is closed.
 *
 * Errors. A call that can fail returns a status. Where that is not CASCADE_OK, `cascade_last_error`
 * has one line for a person: what is wrong, with its name and value, and what to do. An image that
 * cannot be read fails alone, in its own result. Nothing exits, prints, or throws into the caller.
 *
 * Structures begin with `struct_size`, their size as the caller compiled it, so that either side may
 * be older than the other. Bytes that the library does not know must be zero, or it refuses; bytes
 * that the caller does not know are not written. In an array the first one's size is the distance
 * from one to the next.
 *
 * Words (decide, defer, exit, score, prediction set) are those of docs/bundle-format.md.
 */
#ifndef CASCADE_CASCADE_H
#define CASCADE_CASCADE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(_WIN32)
#define CASCADE_API
#else
#define CASCADE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Rises when something that stands here changes its meaning or its place; additions keep it. */
#define CASCADE_ABI_VERSION 1
#define CASCADE_MAX_STAGES  127 /* of a bundle */

CASCADE_API uint32_t    cascade_abi_version(void); /* the library's CASCADE_ABI_VERSION */
CASCADE_API const char *cascade_version(void);     /* the library's own, "0.1.0" */

/* ------------------------------------------------------------------------------------ statuses */

typedef int32_t cascade_status;
enum {
    CASCADE_OK      = 0,
    CASCADE_FAILURE = 1, /* the machine is at fault: memory, an engine that fails while it runs */
    CASCADE_USAGE   = 2, /* the call is: a null pointer, a size, an option */
    CASCADE_BUNDLE  = 3, /* the bundle is damaged, foreign, or not what was certified */
    CASCADE_TARGET  = 4, /* this machine cannot run the target, or answers otherwise */
    CASCADE_IMAGE   = 5, /* this image cannot be read; others of the batch go on */
    CASCADE_BUSY    = 6  /* the queue is full; this image was not taken */
};

/* What went wrong in the latest failed call of this thread; "" if none did. Valid until the next
 * call of this thread. */
CASCADE_API const char *cascade_last_error(void);

/* The same into `buffer`, cut to `size` bytes with the final zero; returns the whole length, as
 * snprintf does. `buffer` may be null if `size` is 0. */
CASCADE_API size_t cascade_copy_last_error(char *buffer, size_t size);

/* ---------------------------------------------------------------------------------------- open */

typedef struct cascade_session cascade_session;

typedef int32_t cascade_log_level;
enum { CASCADE_LOG_INFO = 0, CASCADE_LOG_WARNING = 1, CASCADE_LOG_ERROR = 2 };

/* Called by any thread that is inside the library, several at once; must not call it back. */
typedef void (*cascade_log_function)(cascade_log_level level, const char *message, void *user);

typedef struct cascade_options {
    size_t      struct_size;
    const char *target;     /* a name of the manifest; null or "auto": the fastest certified one
                               that can run here */
    const char *public_key; /* a PEM file: refuse what its holder has not signed; null: any bundle */
    uint32_t    threads;    /* CPU threads of an engine and of decoding; 0: every core */
    int32_t     self_test;  /* not 0: run the golden vectors, refuse a machine that differs */
    int32_t     warm_up;    /* not 0 (default): run every batch size once before the first answer */
    uint32_t    max_batch;      /* the queue's: images at a time, default 32 */
    uint32_t    max_delay_us;   /* the queue's: how long one waits for others, default 2000 */
    uint32_t    queue_capacity; /* the queue's: images waiting at most, default 256 */

    /* Where an engine library lies: a file, or a folder that has it. Null: the environment variable
     * CASCADE_ONNXRUNTIME_LIBRARY (or ..._OPENVINO_..., ..._TENSORRT_...), else the loader's path. */
    const char *onnxruntime_library;
    const char *openvino_library;
    const char *tensorrt_library;

    cascade_log_function log; /* null: silence */
    void                *log_user;
} cascade_options;

/* Defaults into the first `struct_size` bytes, that is `sizeof(cascade_options)`. */
CASCADE_API cascade_status cascade_default_options(cascade_options *options, size_t struct_size);

/* Verify the bundle at `path`, a folder or a zip, in the order of its specification; choose a
 * target; load its engines. `options` may be null. `*session` is null where it fails. */
CASCADE_API cascade_status cascade_open(const char *path, const cascade_options *options,
                                        cascade_session **session);

/* Answer what was submitted, then free everything. Null is nothing to close. */
CASCADE_API void cascade_close(cascade_session *session);

/* ---------------------------------------------------------------------------------------- info */

typedef struct cascade_info {
    size_t      struct_size;
    const char *target;         /* in use, "openvino/bf16/cpu" */
    const char *why;            /* this one, as a sentence */
    const char *engine;         /* the library and its version, "openvino 2026.4.1" */
    const char *manifest_json;  /* the whole manifest, as it was verified */
    const char *classes[2];     /* names of class 0 and class 1 */
    const char *signer;         /* fingerprint of the key that was required, else null */
    const char *promise;        /* what the certificate promises, in words */
    int32_t     certified;      /* 0: INFEASIBLE, every image is deferred */
    uint32_t    stages;
    uint32_t    height, width;  /* of the pixels that stage 0 takes */
    double      alpha, delta;   /* promised risk; delta is NaN where the promise is one on average */
    double      coverage_lower; /* lower bound of the share that is acted on */
} cascade_info;

CASCADE_API cascade_status cascade_get_info(const cascade_session *session, cascade_info *info);

/* The name of class 0 or 1; null for any other number, such as a deferral's -1. */
CASCADE_API const char *cascade_class_name(const cascade_session *session, int32_t label);

/* ------------------------------------------------------------------------------------ classify */

typedef int32_t cascade_image_kind;
enum { CASCADE_IMAGE_FILE = 0, CASCADE_IMAGE_ENCODED = 1, CASCADE_IMAGE_FRAME = 2 };

typedef int32_t cascade_format;
enum {
    CASCADE_RGB  = 0, /* 3 bytes a pixel */
    CASCADE_BGR  = 1,
    CASCADE_RGBA = 2, /* 4 bytes a pixel; laid on black, as alpha in a file is */
    CASCADE_BGRA = 3,
    CASCADE_GREY = 4, /* 1 byte a pixel */
    CASCADE_NV12 = 5  /* Y, then CbCr at half the size; BT.601, limited range */
};

typedef struct cascade_image {
    size_t             struct_size;
    cascade_image_kind kind;
    cascade_format     format;    /* of a frame */
    const char        *path;      /* of a file */
    const void        *data;      /* an encoded image (JPEG, PNG, WebP), or a frame's pixels */
    size_t             size;      /* bytes of it */
    uint32_t           width, height;
    size_t             stride;    /* bytes from a frame's row to its next; 0: rows are packed */
    const void        *chroma;    /* NV12: the second plane; null: right after the first */
    size_t             chroma_size, chroma_stride;
} cascade_image;

typedef int32_t cascade_reason;
enum {
    CASCADE_ACTED           = 0,
    CASCADE_BELOW_THRESHOLD = 1, /* no exit trusted itself */
    CASCADE_AMBIGUOUS       = 2, /* both classes are in the set */
    CASCADE_EMPTY           = 3, /* none is */
    CASCADE_NOT_FINITE      = 4,
    CASCADE_NOT_ACCEPTED    = 5,
    CASCADE_UNREADABLE      = 6
};

typedef struct cascade_result {
    size_t         struct_size;
    cascade_status status;   /* CASCADE_OK, or CASCADE_IMAGE; CASCADE_FAILURE from a submission */
    int32_t        decision; /* the class that is acted on; -1: deferred */
    cascade_reason reason;   /* why it was deferred */
    int32_t        stage;    /* the exit that was final; -1: unreadable */
    uint32_t       set;      /* the prediction set there: 1 has class 0, 2 has class 1 */
    uint32_t       reserved;
    double         p;        /* probability of class 1 there; NaN: unreadable */
    double         score;    /* the exit score there, higher is more trusted */
    char           message[256]; /* what is wrong with the image, else "" */
} cascade_result;

/* Decide `count` images, of any kinds mixed, in one go; results in their order. */
CASCADE_API cascade_status cascade_classify(const cascade_session *session,
                                            const cascade_image *images, size_t count,
                                            cascade_result *results);

/* The same, with at most `max_batch` images through an engine together, where 32 is the most anyway:
 * less memory, or a measurement of small batches. */
CASCADE_API cascade_status cascade_classify_batches(const cascade_session *session,
                                                    const cascade_image *images, size_t count,
                                                    size_t max_batch, cascade_result *results);

/* The reason as Python has it: "acted", "below threshold", ... */
CASCADE_API const char *cascade_reason_text(cascade_reason reason);

/* -------------------------------------------------------------------------------------- submit */

/* Called once for each image that was taken, by a thread of the session; `result` lives during the
 * call. It may submit; it must not close. */
typedef void (*cascade_done_function)(const cascade_result *result, void *user);

/* Queue one image and return at once. Those that wait are decided together, at most `max_batch`,
 * when the first has waited `max_delay_us`. What the image points to must stay until `done` is
 * called. CASCADE_BUSY: the queue is full; the image was not taken and `done` is not called. */
CASCADE_API cascade_status cascade_submit(cascade_session *session, const cascade_image *image,
                                          cascade_done_function done, void *user);

/* --------------------------------------------------------------------------------------- stats */

#define CASCADE_BUCKETS 56

typedef struct cascade_histogram {
    uint64_t count;
    uint64_t sum_us;
    uint64_t buckets[CASCADE_BUCKETS]; /* those above the bound before, and at most this one's */
} cascade_histogram;

typedef struct cascade_stats {
    size_t            struct_size;
    uint64_t          images;     /* decided or unreadable; the sum of the next three */
    uint64_t          acted;
    uint64_t          deferred;
    uint64_t          unreadable;
    uint64_t          refused;    /* by a full queue; not among the images */
    uint64_t          failures;   /* calls and micro-batches that ended in an error */
    uint64_t          batches;    /* parts of calls, 128 images at most, and micro-batches */
    uint64_t          queued;     /* waiting right now */
    uint64_t          reasons[8]; /* by cascade_reason */
    uint64_t          exits[CASCADE_MAX_STAGES + 1]; /* images by their final stage */
    cascade_histogram decide;     /* a batch, from its images to its decisions */
    cascade_histogram submitted;  /* an image, from cascade_submit to its callback */
} cascade_stats;

/* Since the session was opened; each number is exact, together they may be a moment apart. */
CASCADE_API cascade_status cascade_get_stats(const cascade_session *session, cascade_stats *stats);

/* The upper bound of a bucket in microseconds, 2^(index/2); the last one's is infinite. */
CASCADE_API double cascade_bucket_bound_us(uint32_t index);

/* ------------------------------------------------------------------- images, ready to be passed */

static inline cascade_image cascade_file(const char *path)
{
    cascade_image image;
    memset(&image, 0, sizeof image);
    image.struct_size = sizeof image;
    image.kind = CASCADE_IMAGE_FILE;
    image.path = path;
    return image;
}

static inline cascade_image cascade_encoded(const void *data, size_t size)
{
    cascade_image image = cascade_file(NULL);
    image.kind = CASCADE_IMAGE_ENCODED;
    image.data = data;
    image.size = size;
    return image;
}

static inline cascade_image cascade_frame(cascade_format format, uint32_t width, uint32_t height,
                                          const void *data, size_t size)
{
    cascade_image image = cascade_encoded(data, size);
    image.kind = CASCADE_IMAGE_FRAME;
    image.format = format;
    image.width = width;
    image.height = height;
    return image;
}

#ifdef __cplusplus
}
#endif

#endif
