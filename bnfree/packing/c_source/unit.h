/* A residual unit: sizes, weights, and where its activations lie. */
struct unit {
    const uint32_t *weights;       /* signs, [block][tap row][tap][word][filters of the block, 16 if none is left out] */
    const uint32_t *masks;         /* which weights survive, likewise; NULL: all */
    const base_number *base;       /* sums where nothing differs, [row case][column case][filters] */
    const uint8_t *row_cases;      /* which taps meet the image, for each row of the output */
    const uint8_t *column_cases;
#if FILTERS_LEFT_OUT
    const uint16_t *there;         /* which outputs have a filter, 16 a number; the scale of the others is 0 */
#endif
    const constant *constants;     /* [block][5][16]: scale, shift, slope, shift, threshold of the next unit */
    const constant *projection;    /* 1x1 convolution of the shortcut, [block][channel][16], or NULL */
    const uint16_t *signs;         /* binary one, 16 outputs a number, [block][channel], or NULL */
    const uint16_t *survivors;
    const constant *projection_scale; /* of either, or NULL */
    constant factor;               /* of the shortcut */
#if FIXED_POINT
    int32_t gain, slope_gain;      /* powers of two */
    int projection_shift;
#endif
    int height, width, rows, columns;
    int channels, outputs, filters, in_blocks, blocks, words;
    int kernel_size, stride, cases, computed, backward, next_padding, next_words;
    int scratch, bits, next_bits;  /* places in values and words */
};

#if defined(AVX512)
INLINE vector load_base(const base_number *base)
{
    if (sizeof *base == 2)
        return _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)base));
    return _mm512_loadu_si512(base);
}
#endif
