/* The binary interface as this compiler sees it: sizes and places of everything in cascade.h. */
#include <cascade/cascade.h>
#include <stdio.h>

#define STRUCT(type) printf("%s %zu\n", #type, sizeof(type))
#define FIELD(type, name) printf("%s.%s %zu %zu\n", #type, #name, offsetof(type, name), \
                                 sizeof(((type *)0)->name))
#define VALUE(name) printf("%s %d\n", #name, (int)(name))

int main(void)
{
    VALUE(CASCADE_ABI_VERSION);
    VALUE(CASCADE_MAX_STAGES);
    VALUE(CASCADE_BUCKETS);
    VALUE(CASCADE_OK);
    VALUE(CASCADE_FAILURE);
    VALUE(CASCADE_USAGE);
    VALUE(CASCADE_BUNDLE);
    VALUE(CASCADE_TARGET);
    VALUE(CASCADE_IMAGE);
    VALUE(CASCADE_BUSY);
    VALUE(CASCADE_LOG_INFO);
    VALUE(CASCADE_LOG_WARNING);
    VALUE(CASCADE_LOG_ERROR);
    VALUE(CASCADE_IMAGE_FILE);
    VALUE(CASCADE_IMAGE_ENCODED);
    VALUE(CASCADE_IMAGE_FRAME);
    VALUE(CASCADE_RGB);
    VALUE(CASCADE_BGR);
    VALUE(CASCADE_RGBA);
    VALUE(CASCADE_BGRA);
    VALUE(CASCADE_GREY);
    VALUE(CASCADE_NV12);
    VALUE(CASCADE_ACTED);
    VALUE(CASCADE_BELOW_THRESHOLD);
    VALUE(CASCADE_AMBIGUOUS);
    VALUE(CASCADE_EMPTY);
    VALUE(CASCADE_NOT_FINITE);
    VALUE(CASCADE_NOT_ACCEPTED);
    VALUE(CASCADE_UNREADABLE);

    STRUCT(cascade_options);
    FIELD(cascade_options, struct_size);
    FIELD(cascade_options, target);
    FIELD(cascade_options, public_key);
    FIELD(cascade_options, threads);
    FIELD(cascade_options, self_test);
    FIELD(cascade_options, warm_up);
    FIELD(cascade_options, max_batch);
    FIELD(cascade_options, max_delay_us);
    FIELD(cascade_options, queue_capacity);
    FIELD(cascade_options, onnxruntime_library);
    FIELD(cascade_options, openvino_library);
    FIELD(cascade_options, tensorrt_library);
    FIELD(cascade_options, log);
    FIELD(cascade_options, log_user);

    STRUCT(cascade_info);
    FIELD(cascade_info, struct_size);
    FIELD(cascade_info, target);
    FIELD(cascade_info, why);
    FIELD(cascade_info, engine);
    FIELD(cascade_info, manifest_json);
    FIELD(cascade_info, classes);
    FIELD(cascade_info, signer);
    FIELD(cascade_info, promise);
    FIELD(cascade_info, certified);
    FIELD(cascade_info, stages);
    FIELD(cascade_info, height);
    FIELD(cascade_info, width);
    FIELD(cascade_info, alpha);
    FIELD(cascade_info, delta);
    FIELD(cascade_info, coverage_lower);

    STRUCT(cascade_image);
    FIELD(cascade_image, struct_size);
    FIELD(cascade_image, kind);
    FIELD(cascade_image, format);
    FIELD(cascade_image, path);
    FIELD(cascade_image, data);
    FIELD(cascade_image, size);
    FIELD(cascade_image, width);
    FIELD(cascade_image, height);
    FIELD(cascade_image, stride);
    FIELD(cascade_image, chroma);
    FIELD(cascade_image, chroma_size);
    FIELD(cascade_image, chroma_stride);

    STRUCT(cascade_result);
    FIELD(cascade_result, struct_size);
    FIELD(cascade_result, status);
    FIELD(cascade_result, decision);
    FIELD(cascade_result, reason);
    FIELD(cascade_result, stage);
    FIELD(cascade_result, set);
    FIELD(cascade_result, reserved);
    FIELD(cascade_result, p);
    FIELD(cascade_result, score);
    FIELD(cascade_result, message);

    STRUCT(cascade_histogram);
    FIELD(cascade_histogram, count);
    FIELD(cascade_histogram, sum_us);
    FIELD(cascade_histogram, buckets);

    STRUCT(cascade_stats);
    FIELD(cascade_stats, struct_size);
    FIELD(cascade_stats, images);
    FIELD(cascade_stats, acted);
    FIELD(cascade_stats, deferred);
    FIELD(cascade_stats, unreadable);
    FIELD(cascade_stats, refused);
    FIELD(cascade_stats, failures);
    FIELD(cascade_stats, batches);
    FIELD(cascade_stats, queued);
    FIELD(cascade_stats, reasons);
    FIELD(cascade_stats, exits);
    FIELD(cascade_stats, decide);
    FIELD(cascade_stats, submitted);
    return 0;
}
