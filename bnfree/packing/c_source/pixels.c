/* Sums of pixels times weights of more than 16 bits, 256 * upper + lower, for 16 outputs of `pixels` neighbours.

   in: the first tap that meets the image, of the first pixel; rows, taps: how many rows of taps do, and numbers in one
   of them; tap: the first tap's place among the weights. */
#if STEM_OF_INTEGERS
INLINE void pixel_sums(const int pixels, const uint8_t *in, int rows, int taps, size_t tap, int32_t *upper,
                       int32_t *lower)
{
    for (int lane = 0; lane < BLOCK; lane += LANES) {
        vector high[STEM_PIXELS], low[STEM_PIXELS];
        for (int p = 0; p < pixels; p++)
            high[p] = low[p] = spread(0);
        for (int row = 0; row < rows; row++)
            for (int t = 0; t < taps; t++) {
                const size_t place = tap + (size_t)(row * STEM_SIZE * CHANNELS + t) * BLOCK + (size_t)lane;
                const vector high_weight = load_int16(stem_upper + place), low_weight = load_int8(stem_lower + place);
                for (int p = 0; p < pixels; p++) {
                    const vector x = spread(in[row * WIDTH * CHANNELS + p * STEM_STRIDE * CHANNELS + t]);
                    high[p] = multiply(high[p], x, high_weight);
                    low[p] = multiply(low[p], x, low_weight);
                }
            }
        for (int p = 0; p < pixels; p++) {
            store(upper + p * BLOCK + lane, high[p]);
            store(lower + p * BLOCK + lane, low[p]);
        }
    }
}
#endif
