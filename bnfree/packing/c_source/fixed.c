/* Arithmetic in whole numbers. A value v stands for v / 2^e, with one e from the first layer or a computed shortcut to
   the next computed one. The ranges of all values follow from the weights, and e keeps every value below 2^29: nothing
   can overflow, and nothing is clipped. No signed number is shifted, so no result depends on the compiler. */

/* x / 2^shift for |x| < 2^62, to the nearest; the upper of two that are equally near. */
INLINE int32_t rounded(int64_t x, int shift)
{
    const uint64_t above = (uint64_t)x + ((uint64_t)1 << 62) + ((uint64_t)1 << (shift - 1));
    return (int32_t)((int64_t)(above >> shift) - ((int64_t)1 << (62 - shift)));
}

/* x * factor / 2^32, likewise. */
INLINE int32_t times(int32_t x, int32_t factor) { return rounded((int64_t)x * factor, 32); }

#if defined(AVX512)
/* The upper halves of the products of even lanes, and of odd ones; the rounding cannot leave 64 bits. */
INLINE __m512i times_each(__m512i x, __m512i factor)
{
    const __m512i half = _mm512_set1_epi64((int64_t)1 << 31);
    const __m512i even = _mm512_add_epi64(_mm512_mul_epi32(x, factor), half);
    const __m512i odd = _mm512_add_epi64(_mm512_mul_epi32(_mm512_srli_epi64(x, 32), _mm512_srli_epi64(factor, 32)), half);
    return _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
}
#endif

INLINE value plus(value x, value y) { return x + y; }

/* The mean of `count` values, 1, 2 or 4, times the unit's factor, which is a quarter of 2^32 where it is 1. */
INLINE value mean(const struct unit *u, value sum, int count)
{
    return times(sum * (4 / count), u->factor);
}

/* A unit's sums of signs, the shortcut added and the RPReLU applied, for 16 outputs; the bits for the next unit. */
INLINE uint32_t finish(const struct unit *u, int block, const base_number *base, const int32_t *differing,
                       const value *residual, value *output)
{
    const int32_t *scale = u->constants + block * 5 * BLOCK;
    const int32_t *shift_in = scale + BLOCK, *slope = scale + 2 * BLOCK;
    const int32_t *shift_out = scale + 3 * BLOCK, *threshold = scale + 4 * BLOCK;
#if defined(AVX512)
    __m512i x = _mm512_loadu_si512(differing);
    x = _mm512_mullo_epi32(_mm512_sub_epi32(load_base(base), _mm512_add_epi32(x, x)), _mm512_set1_epi32(u->gain));
    x = times_each(x, _mm512_loadu_si512(scale));
    x = _mm512_add_epi32(x, _mm512_add_epi32(_mm512_loadu_si512(residual), _mm512_loadu_si512(shift_in)));
    const __m512i below = _mm512_min_epi32(x, _mm512_setzero_si512());
    const __m512i sloped = _mm512_mullo_epi32(below, _mm512_set1_epi32(u->slope_gain));
    x = _mm512_max_epi32(x, _mm512_setzero_si512());
    x = _mm512_add_epi32(_mm512_add_epi32(x, times_each(sloped, _mm512_loadu_si512(slope))), _mm512_loadu_si512(shift_out));
    _mm512_storeu_si512(output, x);
    return _mm512_cmpge_epi32_mask(x, _mm512_loadu_si512(threshold));
#else
    const int32_t gain = u->gain, slope_gain = u->slope_gain;
    uint32_t bits = 0;
    for (int o = 0; o < BLOCK; o++) {
        const int32_t x = times((base[o] - 2 * differing[o]) * gain, scale[o]) + (residual[o] + shift_in[o]);
        output[o] = (x > 0 ? x : times(x * slope_gain, slope[o])) + shift_out[o];
    }
    for (int o = 0; o < BLOCK; o++)
        bits |= (uint32_t)(output[o] >= threshold[o]) << o;
    return bits;
#endif
}

/* 16 outputs of a 1x1 convolution on the shortcut, for `pixels` neighbours. */
#if defined(AVX512)
INLINE void project(const int pixels, const struct unit *u, int block, const value *in, value *out)
{
    const int in_pixel = u->in_blocks * BLOCK, out_pixel = u->blocks * BLOCK;
    const __m512i half = _mm512_set1_epi64((int64_t)1 << (u->projection_shift - 1));
    const __m128i shift = _mm_cvtsi32_si128(u->projection_shift);
    __m512i even[PIXELS], odd[PIXELS];
    for (int p = 0; p < pixels; p++)
        even[p] = odd[p] = _mm512_setzero_si512();
    if (u->projection != NULL) {
        const int32_t *weights = u->projection + (size_t)block * (size_t)u->channels * BLOCK;
        for (int i = 0; i < u->channels; i++) {
            const __m512i weight = _mm512_loadu_si512(weights + i * BLOCK), next = _mm512_srli_epi64(weight, 32);
            for (int p = 0; p < pixels; p++) {
                const __m512i x = _mm512_set1_epi32(in[p * in_pixel + i]);
                even[p] = _mm512_add_epi64(even[p], _mm512_mul_epi32(x, weight));
                odd[p] = _mm512_add_epi64(odd[p], _mm512_mul_epi32(x, next));
            }
        }
    } else {
        const uint16_t *signs = u->signs + (size_t)block * (size_t)u->channels;
        const uint16_t *survivors = u->survivors + (size_t)block * (size_t)u->channels;
        const __m512i scale = _mm512_loadu_si512(u->projection_scale + block * BLOCK);
        for (int i = 0; i < u->channels; i++) {
            const __mmask16 positive = signs[i], negative = (__mmask16)(survivors[i] & ~signs[i]);
            for (int p = 0; p < pixels; p++) {
                const __m512i x = _mm512_set1_epi32(in[p * in_pixel + i]);
                even[p] = _mm512_mask_add_epi32(even[p], positive, even[p], x);
                even[p] = _mm512_mask_sub_epi32(even[p], negative, even[p], x);
            }
        }
        for (int p = 0; p < pixels; p++) {
            odd[p] = _mm512_mul_epi32(_mm512_srli_epi64(even[p], 32), _mm512_srli_epi64(scale, 32));
            even[p] = _mm512_mul_epi32(even[p], scale);
        }
    }
    for (int p = 0; p < pixels; p++) {
        const __m512i lower = _mm512_sra_epi64(_mm512_add_epi64(even[p], half), shift);
        const __m512i upper = _mm512_sra_epi64(_mm512_add_epi64(odd[p], half), shift);
        _mm512_storeu_si512(out + p * out_pixel, _mm512_mask_blend_epi32(0xaaaa, lower, _mm512_slli_epi64(upper, 32)));
    }
}
#else
INLINE void project(const int pixels, const struct unit *u, int block, const value *in, value *out)
{
    const int in_pixel = u->in_blocks * BLOCK, out_pixel = u->blocks * BLOCK;
    for (int p = 0; p < pixels; p++, in += in_pixel, out += out_pixel) {
        if (u->projection != NULL) {
            const int32_t *weights = u->projection + (size_t)block * (size_t)u->channels * BLOCK;
            int64_t sum[BLOCK] = {0};
            for (int i = 0; i < u->channels; i++)
                for (int o = 0; o < BLOCK; o++)
                    sum[o] += (int64_t)in[i] * weights[i * BLOCK + o];
            for (int o = 0; o < BLOCK; o++)
                out[o] = rounded(sum[o], u->projection_shift);
        } else {
            const uint16_t *signs = u->signs + (size_t)block * (size_t)u->channels;
            const uint16_t *survivors = u->survivors + (size_t)block * (size_t)u->channels;
            const int32_t *scale = u->projection_scale + block * BLOCK;
            int32_t sum[BLOCK] = {0};
            for (int i = 0; i < u->channels; i++)
                for (int o = 0; o < BLOCK; o++) {
                    const int32_t survives = survivors[i] >> o & 1, positive = signs[i] >> o & 1;
                    sum[o] += (2 * positive - survives) * in[i];
                }
            for (int o = 0; o < BLOCK; o++)
                out[o] = rounded((int64_t)sum[o] * scale[o], u->projection_shift);
        }
    }
}
#endif

/* 16 outputs of the first layer for `pixels` neighbours, in each of which the same taps meet the image; see pixel_sums. */
INLINE void stem_sums(const int pixels, int block, const uint8_t *in, int rows, int taps, size_t tap, size_t place,
                      value *out)
{
    int32_t upper[STEM_PIXELS * BLOCK], lower[STEM_PIXELS * BLOCK];
    pixel_sums(pixels, in, rows, taps, tap, upper, lower);
    for (int p = 0; p < pixels; p++, out += STEM_BLOCKS * BLOCK)
        for (int o = 0; o < BLOCK; o++) {
            const int32_t sum = 256 * upper[p * BLOCK + o] + lower[p * BLOCK + o];
            out[o] = times(sum + stem_base[place + (size_t)o], stem_scale[block * BLOCK + o]);
        }
}

/* The only real numbers. Two halves, since compilers call a library for 64 bits; their products are exact. */
INLINE float logit_of(int64_t sum)
{
    const uint64_t size = sum < 0 ? (uint64_t)-sum : (uint64_t)sum;
    const float logit = (float)(uint32_t)(size >> 32) * 4294967296.0f + (float)(uint32_t)size;
    return (sum < 0 ? -logit : logit) * logit_step[0];
}

/* Global average pooling, and the linear layer. */
static int classify(const value *x, int pixels, int pixel, value *features, float *logits)
{
    int64_t highest = 0;
    int best = 0;
    for (int i = 0; i < FEATURES; i++) {
        int64_t sum = 0;
        for (int p = 0; p < pixels; p++)
            sum += x[p * pixel + i];
        features[i] = rounded(sum * MEAN_FACTOR, 32);
    }
    for (int k = 0; k < CLASSES; k++) {
        int64_t sum = classifier_bias[k];
        for (int i = 0; i < FEATURES; i++)
            sum += (int64_t)features[i] * classifier_weights[k * FEATURES + i];
        if (k == 0 || sum > highest) {
            highest = sum;
            best = k;
        }
        logits[k] = logit_of(sum);
    }
    return best;
}
