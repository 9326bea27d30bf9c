/* How many bits differ: 16 outputs share a word of 32 inputs, and some neighbouring pixels share the weights. */

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

#define BLOCK 16

/* What the processor has: LANES outputs in a vector; PIXELS that fit into its registers; STEPS that are counted before
   the counts of bytes would overflow. */
#if defined(__AVX512VPOPCNTDQ__) && defined(__AVX512BW__)
#define AVX512
#include <immintrin.h>
#define LANES 16
#define PIXELS 8
#define STEPS 65536
typedef __m512i vector;
INLINE vector load(const uint32_t *from) { return _mm512_loadu_si512(from); }
INLINE vector spread(uint32_t word) { return _mm512_set1_epi32((int)word); }
INLINE vector differ(vector a, vector b) { return _mm512_xor_si512(a, b); }
INLINE vector among(vector a, vector b) { return _mm512_and_si512(a, b); }
INLINE vector begin(vector total) { return total; }
INLINE vector add(vector sum, vector bits) { return _mm512_add_epi32(sum, _mm512_popcnt_epi32(bits)); }
INLINE vector end(vector total, vector sum) { (void)total; return sum; }
INLINE void store(int32_t *to, vector total) { _mm512_storeu_si512(to, total); }
INLINE vector load_int16(const int16_t *from)
{
    return _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)from));
}
INLINE vector load_int8(const int8_t *from)
{
    return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)from));
}
/* A pixel has no upper half, so of the two products that are summed one is 0. */
INLINE vector multiply(vector sum, vector pixel, vector weight)
{
    return _mm512_add_epi32(sum, _mm512_madd_epi16(pixel, weight));
}
#elif defined(__AVX2__)
#include <immintrin.h>
#define LANES 8
#define PIXELS 4
#define STEPS 31
typedef __m256i vector;
INLINE vector load(const uint32_t *from) { return _mm256_loadu_si256((const __m256i *)(const void *)from); }
INLINE vector spread(uint32_t word) { return _mm256_set1_epi32((int)word); }
INLINE vector differ(vector a, vector b) { return _mm256_xor_si256(a, b); }
INLINE vector among(vector a, vector b) { return _mm256_and_si256(a, b); }
INLINE vector begin(vector total) { (void)total; return _mm256_setzero_si256(); }
INLINE vector add(vector sum, vector bits)
{
    const vector counts = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,
                                           0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const vector low = _mm256_set1_epi8(15);
    const vector upper = _mm256_shuffle_epi8(counts, _mm256_and_si256(_mm256_srli_epi16(bits, 4), low));
    const vector lower = _mm256_shuffle_epi8(counts, _mm256_and_si256(bits, low));
    return _mm256_add_epi8(sum, _mm256_add_epi8(upper, lower));
}
INLINE vector end(vector total, vector sum)
{
    const vector pairs = _mm256_maddubs_epi16(sum, _mm256_set1_epi8(1));
    return _mm256_add_epi32(total, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
INLINE void store(int32_t *to, vector total) { _mm256_storeu_si256((__m256i *)(void *)to, total); }
INLINE vector load_int16(const int16_t *from)
{
    return _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)(const void *)from));
}
INLINE vector load_int8(const int8_t *from)
{
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)from));
}
INLINE vector multiply(vector sum, vector pixel, vector weight)
{
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pixel, weight));
}
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#define LANES 4
#define PIXELS 4
#define STEPS 31
typedef uint32x4_t vector;
INLINE vector load(const uint32_t *from) { return vld1q_u32(from); }
INLINE vector spread(uint32_t word) { return vdupq_n_u32(word); }
INLINE vector differ(vector a, vector b) { return veorq_u32(a, b); }
INLINE vector among(vector a, vector b) { return vandq_u32(a, b); }
INLINE vector begin(vector total) { (void)total; return vdupq_n_u32(0); }
INLINE vector add(vector sum, vector bits)
{
    return vreinterpretq_u32_u8(vaddq_u8(vreinterpretq_u8_u32(sum), vcntq_u8(vreinterpretq_u8_u32(bits))));
}
INLINE vector end(vector total, vector sum)
{
    return vpadalq_u16(total, vpaddlq_u8(vreinterpretq_u8_u32(sum)));
}
INLINE void store(int32_t *to, vector total) { vst1q_s32(to, vreinterpretq_s32_u32(total)); }
INLINE vector load_int16(const int16_t *from) { return vreinterpretq_u32_s32(vmovl_s16(vld1_s16(from))); }
INLINE vector load_int8(const int8_t *from)
{
    const int16_t four[4] = {from[0], from[1], from[2], from[3]};
    return load_int16(four);
}
INLINE vector multiply(vector sum, vector pixel, vector weight) { return vmlaq_u32(sum, pixel, weight); }
#else
#define LANES 1
typedef uint32_t vector;
INLINE vector load(const uint32_t *from) { return *from; }
INLINE vector spread(uint32_t word) { return word; }
INLINE vector differ(vector a, vector b) { return a ^ b; }
INLINE vector among(vector a, vector b) { return a & b; }
INLINE void store(int32_t *to, vector total) { *to = (int32_t)total; }
INLINE vector load_int16(const int16_t *from) { return (uint32_t)(int32_t)*from; }
INLINE vector load_int8(const int8_t *from) { return (uint32_t)(int32_t)*from; }
INLINE vector multiply(vector sum, vector pixel, vector weight) { return sum + pixel * weight; }
#if defined(__GNUC__) && (defined(__POPCNT__) || defined(__riscv_zbb) || defined(__POWER8_VECTOR__))
#define PIXELS 2
#define STEPS 65536
INLINE vector begin(vector total) { return total; }
INLINE vector add(vector sum, vector bits) { return sum + (uint32_t)__builtin_popcountl(bits); }
INLINE vector end(vector total, vector sum) { (void)total; return sum; }
#else
/* No instruction counts bits: pairs, fours and bytes, which add up before they are taken apart. */
#define PIXELS 1
#define STEPS 31
INLINE vector begin(vector total) { (void)total; return 0; }
INLINE vector add(vector sum, vector bits)
{
    bits -= bits >> 1 & 0x55555555u;
    bits = (bits & 0x33333333u) + (bits >> 2 & 0x33333333u);
    return sum + ((bits + (bits >> 4)) & 0x0f0f0f0fu);
}
INLINE vector end(vector total, vector sum)
{
    /* Four counts of up to 248 may sum to more than a byte holds. */
    sum = (sum & 0x00ff00ffu) + (sum >> 8 & 0x00ff00ffu);
    return total + (sum & 0xffffu) + (sum >> 16);
}
#endif
#endif

#define STEM_PIXELS (PIXELS < 4 ? PIXELS : 4)

/* For 16 outputs of `pixels` neighbours, how many of the inputs that their weights meet have the other sign.

   in: the first pixel's first tap; in_row and in_pixel words lead to the next row and to the next pixel.
   weights, masks: [tap row][step][filters], a step being a word of a tap; masks is NULL where all weights survive.
   filters: at most 16. What is counted for outputs beyond them means nothing: a vector reads what lies behind. */
INLINE void count(const int pixels, const int masked, const uint32_t *in, size_t in_row, size_t in_pixel,
                  const uint32_t *weights, const uint32_t *masks, int tap_rows, int steps, int filters,
                  int32_t *differing)
{
    for (int lane = 0; lane < filters; lane += LANES) {
        vector total[PIXELS], sum[PIXELS];
        for (int p = 0; p < pixels; p++)
            total[p] = spread(0);
        for (int row = 0; row < tap_rows; row++) {
            for (int from = 0; from < steps; from += STEPS) {
                const int to = steps - from < STEPS ? steps : from + STEPS;
                for (int p = 0; p < pixels; p++)
                    sum[p] = begin(total[p]);
                for (int step = from; step < to; step++) {
                    const size_t place = ((size_t)row * (size_t)steps + (size_t)step) * (size_t)filters + (size_t)lane;
                    const vector weight = load(weights + place);
                    const uint32_t *word = in + (size_t)row * in_row + step;
                    for (int p = 0; p < pixels; p++) {
                        vector bits = differ(weight, spread(word[(size_t)p * in_pixel]));
                        if (masked)
                            bits = among(bits, load(masks + place));
                        sum[p] = add(sum[p], bits);
                    }
                }
                for (int p = 0; p < pixels; p++)
                    total[p] = end(total[p], sum[p]);
            }
        }
        for (int p = 0; p < pixels; p++)
            store(differing + p * BLOCK + lane, total[p]);
    }
}
