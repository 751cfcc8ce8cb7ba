/*
 * Classify image files with a bundle.
 *
 *     classify_c BUNDLE IMAGE...
 *
 * One line an image: what to act on, or why it was deferred. Exit status: that of the C API, 0 where
 * every image was decided.
 */
#include <cascade/cascade.h>
#include <stdio.h>
#include <stdlib.h>

static int failed(const char *what, cascade_status status)
{
    fprintf(stderr, "%s: %s\n", what, cascade_last_error());
    return status;
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: %s BUNDLE IMAGE...\n", argv[0]);
        return CASCADE_USAGE;
    }
    cascade_session *session = NULL;
    cascade_status status = cascade_open(argv[1], NULL, &session);
    if (status != CASCADE_OK)
        return failed(argv[1], status);

    cascade_info info = {.struct_size = sizeof info};
    cascade_get_info(session, &info);
    fprintf(stderr, "%s: %s\n", info.engine, info.why);

    int worst = 0;
    for (int i = 2; i < argc; i++) {
        cascade_image image = cascade_file(argv[i]);
        cascade_result result = {.struct_size = sizeof result};
        status = cascade_classify(session, &image, 1, &result);
        if (status != CASCADE_OK) {
            worst = failed(argv[i], status);
            break;
        }
        if (result.status == CASCADE_IMAGE) {
            printf("%s: unreadable: %s\n", argv[i], result.message);
            worst = CASCADE_IMAGE;
        } else if (result.decision < 0) {
            printf("%s: deferred: %s\n", argv[i], cascade_reason_text(result.reason));
        } else {
            printf("%s: %s, p %.4f, stage %d\n", argv[i],
                   cascade_class_name(session, result.decision), result.p, result.stage);
        }
    }
    cascade_close(session);
    return worst;
}
