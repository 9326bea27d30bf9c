/* @TITLE@
   @ORIGIN@ */

#ifndef @CAPITALS@_H
#define @CAPITALS@_H

#include <stdint.h>

#define @CAPITALS@_HEIGHT @HEIGHT@
#define @CAPITALS@_WIDTH @WIDTH@
#define @CAPITALS@_CHANNELS @CHANNELS@
#define @CAPITALS@_PIXELS @PIXELS@ /* bytes of an image */
#define @CAPITALS@_CLASSES @CLASSES@
#define @CAPITALS@_RAM @RAM@ /* bytes of static memory */
#define @CAPITALS@_CONSTANTS @CONSTANTS@ /* bytes of weights and constants, read only */

#ifdef __cplusplus
extern "C" {
#endif

/* The class of an image, and its logits.

   pixels: rows of pixels, the channels of a pixel one behind the other (red, green, blue), 0 to 255, not normalised.
   logits: @CAPITALS@_CLASSES numbers, which are written.

   The network was trained on (pixel / 255 - mean) / std, which is part of its first layer here:
   mean: @MEAN@
   std: @STD@

   Works in static memory, so not for two threads at once. */
int @NAME@_predict(const uint8_t *pixels, float *logits);

#ifdef __cplusplus
}
#endif

#endif
