/* Classifies raw images: @SHAPE@, 8 bits a number, no header. A file may hold several images one behind
   the other. Prints a line for each: the class, its name, and the logits. */

#include <stdio.h>

#include "@NAME@.h"

static const char *const class_names[@CAPITALS@_CLASSES] = {
@CLASS_NAMES@
};

static uint8_t pixels[@CAPITALS@_PIXELS];
static float logits[@CAPITALS@_CLASSES];

int main(int count, char **arguments)
{
    if (count < 2) {
        fprintf(stderr, "usage: %s image.raw ...\n", arguments[0]);
        return 2;
    }
    for (int i = 1; i < count; i++) {
        FILE *file = fopen(arguments[i], "rb");
        size_t bytes, images = 0;
        if (file == NULL) {
            fprintf(stderr, "%s cannot be read.\n", arguments[i]);
            return 1;
        }
        while ((bytes = fread(pixels, 1, sizeof pixels, file)) == sizeof pixels) {
            const int best = @NAME@_predict(pixels, logits);
            printf("%d %s", best, class_names[best]);
            for (int k = 0; k < @CAPITALS@_CLASSES; k++)
                printf(" %.9g", (double)logits[k]);
            printf("\n");
            images++;
        }
        fclose(file);
        if (bytes != 0 || images == 0) {
            fprintf(stderr, "%s does not hold images of %d bytes each.\n", arguments[i], @CAPITALS@_PIXELS);
            return 1;
        }
    }
    return 0;
}
