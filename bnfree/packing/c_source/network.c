/* The network row by row. A unit's output takes the place of its input: from the last row up where it is larger. */

/* 16 bits of a pixel; words of zeros stand at the sides of a row. */
INLINE void put(uint32_t *pixel, int block, uint32_t bits)
{
    if (block % 2 == 0)
        pixel[block / 2] = bits;
    else
        pixel[block / 2] |= bits << 16;
}

static void clear_sides(uint32_t *row, int width, int padding, int words)
{
    for (int i = 0; i < padding * words; i++)
        row[i] = row[(width + padding) * words + i] = 0;
}

/* One row of what is added to a unit's scaled sums: averaged, scaled, repeated or convolved. */
static void shortcut_row(const struct unit *u, int row, value *residual)
{
    const int size = u->stride, in_pixel = u->in_blocks * BLOCK, out_pixel = u->blocks * BLOCK;
    const int projected = u->projection != NULL || u->signs != NULL, pitch = projected ? in_pixel : out_pixel;
    const int last_i = (row + 1) * size < u->height ? (row + 1) * size : u->height;
    value *pooled = projected ? residual + u->columns * out_pixel : residual;
    for (int column = 0; column < u->columns; column++) {
        const int last_j = (column + 1) * size < u->width ? (column + 1) * size : u->width;
        const int count = (last_i - row * size) * (last_j - column * size);
        value *place = pooled + column * pitch;
        for (int i = 0; i < pitch; i++)
            place[i] = 0;
        for (int i = row * size; i < last_i; i++)
            for (int j = column * size; j < last_j; j++) {
                const value *x = values + ((size_t)i * (size_t)u->width + (size_t)j) * (size_t)in_pixel;
                for (int channel = 0; channel < u->channels; channel++)
                    place[channel] = plus(place[channel], x[channel]);
            }
        for (int channel = 0; channel < u->channels; channel++)
            place[channel] = mean(u, place[channel], count);
        if (!projected)
            for (int channel = u->channels; channel < u->outputs; channel++)
                place[channel] = place[channel - u->channels];
    }
    if (projected)
        for (int block = 0; block < u->blocks; block++) {
            int column = 0;
            for (; column + PIXELS <= u->columns; column += PIXELS)
                project(PIXELS, u, block, pooled + column * in_pixel, residual + column * out_pixel + block * BLOCK);
            for (; column < u->columns; column++)
                project(1, u, block, pooled + column * in_pixel, residual + column * out_pixel + block * BLOCK);
        }
}

/* The filters of 16 outputs: how many, and the number of the first one in its unit. */
struct filters {
    int count, first;
    uint32_t there;
};

INLINE struct filters filters_of(const struct unit *u, int block, int first)
{
#if FILTERS_LEFT_OUT
    struct filters found = {0, first, u->there[block]};
    for (uint32_t there = found.there; there != 0; there &= there - 1)
        found.count++;
#else
    const struct filters found = {BLOCK, first, 0xffffu};
    (void)u;
    (void)block;
#endif
    return found;
}

#if FILTERS_LEFT_OUT
/* Moves what was counted to its outputs, in place, 0 to those without a filter; gives the sums where nothing differs. */
INLINE const base_number *spread_out(struct filters filters, const base_number *base, int32_t *differing,
                                     base_number *own)
{
    if (filters.count == BLOCK)
        return base;
    for (int o = BLOCK - 1, from = filters.count; o >= 0; o--) {
        const int there = filters.there >> o & 1;
        from -= there;
        own[o] = 0;
        if (there)
            own[o] = base[from];
        differing[o] = there ? differing[from] : 0;
    }
    return own;
}
#endif

/* 16 outputs of a unit in `pixels` neighbouring columns. */
INLINE void unit_tile(const int pixels, const struct unit *u, int block, struct filters filters, int row, int column,
                      const uint32_t *weights, const uint32_t *masks, const uint32_t *in, size_t in_row, int tap_rows,
                      const value *residual, value *output, uint32_t *next)
{
    const int steps = u->kernel_size * u->words, pixel = u->blocks * BLOCK;
    const size_t in_pixel = (size_t)(u->stride * u->words);
    const base_number *base = u->base + (size_t)(u->row_cases[row] * u->cases) * (size_t)u->filters + filters.first;
    int32_t differing[PIXELS * BLOCK];
    in += (size_t)column * in_pixel;
    if (masks == NULL)
        count(pixels, 0, in, in_row, in_pixel, weights, masks, tap_rows, steps, filters.count, differing);
    else
        count(pixels, 1, in, in_row, in_pixel, weights, masks, tap_rows, steps, filters.count, differing);
    for (int p = 0; p < pixels; p++) {
        const int place = (column + p) * pixel + block * BLOCK;
        const base_number *same = base + u->column_cases[column + p] * u->filters;
#if FILTERS_LEFT_OUT
        base_number own[BLOCK];
        same = spread_out(filters, same, differing + p * BLOCK, own);
#endif
        const uint32_t bits = finish(u, block, same, differing + p * BLOCK, residual + place, output + place);
        if (u->next_words > 0)
            put(next + (column + p) * u->next_words, block, bits);
    }
}

static void unit_row(const struct unit *u, int row)
{
    const int padding = u->kernel_size / 2, top = row * u->stride - padding;
    const int first = top < 0 ? -top : 0;
    const int last = u->height - top < u->kernel_size ? u->height - top : u->kernel_size;
    const size_t in_row = (size_t)((u->width + 2 * padding) * u->words);
    const size_t tap_row = (size_t)(u->kernel_size * u->words);
    const uint32_t *in = words + u->bits + (size_t)(top + first) * in_row;
    uint32_t *next = words + u->next_bits;
    value *output = values + (size_t)row * (size_t)(u->columns * u->blocks * BLOCK);
    const value *residual = output;
    if (u->next_words > 0) {
        next += (size_t)row * (size_t)((u->columns + 2 * u->next_padding) * u->next_words);
        clear_sides(next, u->columns, u->next_padding, u->next_words);
        next += u->next_padding * u->next_words;
    }
    if (u->computed) {
        shortcut_row(u, row, values + u->scratch);
        residual = values + u->scratch;
    }
    for (int block = 0, before = 0; block < u->blocks; block++) {
        const struct filters filters = filters_of(u, block, before);
        const size_t skipped = (size_t)(before * u->kernel_size + first * filters.count) * tap_row;
        const uint32_t *weights = u->weights + skipped, *masks = u->masks == NULL ? NULL : u->masks + skipped;
        int column = 0;
#define TILES(n) \
        for (; PIXELS >= (n) && column + (n) <= u->columns; column += (n)) \
            unit_tile(PIXELS >= (n) ? (n) : 1, u, block, filters, row, column, weights, masks, in, in_row, \
                      last - first, residual, output, next)
        TILES(8);
        TILES(4);
        TILES(2);
        TILES(1);
        before += filters.count;
    }
}

static void run_unit(const struct unit *u)
{
    for (int i = 0; i < u->rows; i++)
        unit_row(u, u->backward ? u->rows - 1 - i : i);
}

/* `pixels` neighbours of one row of the first layer, all outputs. */
INLINE void stem_tile(const int pixels, const uint8_t *image, int row, int column, value *out)
{
    const int top = row * STEM_STRIDE - STEM_SIZE / 2, left = column * STEM_STRIDE - STEM_SIZE / 2;
    const int first_row = top < 0 ? -top : 0, first_column = left < 0 ? -left : 0;
    const int last_row = HEIGHT - top < STEM_SIZE ? HEIGHT - top : STEM_SIZE;
    const int last_column = WIDTH - left < STEM_SIZE ? WIDTH - left : STEM_SIZE;
    const int rows = last_row - first_row, taps = (last_column - first_column) * CHANNELS;
    const uint8_t *in = image + ((size_t)(top + first_row) * WIDTH + (size_t)(left + first_column)) * CHANNELS;
    for (int block = 0; block < STEM_BLOCKS; block++, out += BLOCK) {
        const size_t tap = (size_t)((block * STEM_SIZE + first_row) * STEM_SIZE + first_column) * CHANNELS * BLOCK;
#if STEM_OF_INTEGERS
        const size_t place = ((size_t)stem_row_cases[row] * STEM_COLUMN_CASES + stem_column_cases[column])
                             * (STEM_BLOCKS * BLOCK) + (size_t)block * BLOCK;
#else
        const size_t place = 0;
#endif
        stem_sums(pixels, block, in, rows, taps, tap, place, out);
    }
}

static void stem_row(const uint8_t *image, int row, value *out)
{
    const int pixel = STEM_BLOCKS * BLOCK, pixels = STEM_PIXELS;
    int column = 0;
    while (column < STEM_COLUMNS) {
        const int left = column * STEM_STRIDE - STEM_SIZE / 2;
        if (left >= 0 && column + pixels <= STEM_COLUMNS && left + (pixels - 1) * STEM_STRIDE + STEM_SIZE <= WIDTH) {
            stem_tile(STEM_PIXELS, image, row, column, out + column * pixel);
            column += pixels;
        } else {
            stem_tile(1, image, row, column, out + column * pixel);
            column++;
        }
    }
}

#if STEM_POOL
/* Max pooling (3x3, stride 2, padding 1) of three rows of the first layer. */
static void pool_row(const value *rows[3], int count, value *out)
{
    const int pixel = STEM_BLOCKS * BLOCK;
    for (int column = 0; column < TRUNK_WIDTH; column++) {
        const int left = 2 * column > 0 ? 2 * column - 1 : 0;
        const int right = 2 * column + 1 < STEM_COLUMNS ? 2 * column + 1 : STEM_COLUMNS - 1;
        for (int channel = 0; channel < pixel; channel++) {
            value highest = rows[0][left * pixel + channel];
            for (int i = 0; i < count; i++)
                for (int j = left; j <= right; j++)
                    if (rows[i][j * pixel + channel] > highest)
                        highest = rows[i][j * pixel + channel];
            out[column * pixel + channel] = highest;
        }
    }
}
#endif

static void run_stem(const uint8_t *pixels)
{
#if STEM_POOL
    const int line = STEM_COLUMNS * STEM_BLOCKS * BLOCK;
    int done = 0;
    for (int row = 0; row < TRUNK_HEIGHT; row++) {
        const int first = row > 0 ? 2 * row - 1 : 0, last = 2 * row + 1 < STEM_ROWS ? 2 * row + 1 : STEM_ROWS - 1;
        const value *rows[3];
        for (; done <= last; done++)
            stem_row(pixels, done, values + STEM_SCRATCH + done % 3 * line);
        for (int i = first; i <= last; i++)
            rows[i - first] = values + STEM_SCRATCH + i % 3 * line;
        pool_row(rows, last - first + 1, values + row * TRUNK_WIDTH * STEM_BLOCKS * BLOCK);
    }
#else
    for (int row = 0; row < TRUNK_HEIGHT; row++)
        stem_row(pixels, row, values + row * TRUNK_WIDTH * STEM_BLOCKS * BLOCK);
#endif
}

/* The bits of 16 channels of the first unit's input. */
INLINE uint32_t compare(const value *x, const constant *threshold)
{
    uint32_t bits = 0;
    for (int o = 0; o < BLOCK; o++)
        bits |= (uint32_t)(x[o] >= threshold[o]) << o;
    return bits;
}

/* The bits of the first unit's input. */
static void binarize(void)
{
    const value *x = values;
    uint32_t *bits = words + FIRST_BITS;
    for (int row = 0; row < TRUNK_HEIGHT; row++) {
        clear_sides(bits, TRUNK_WIDTH, FIRST_PADDING, FIRST_WORDS);
        bits += FIRST_PADDING * FIRST_WORDS;
        for (int column = 0; column < TRUNK_WIDTH; column++, bits += FIRST_WORDS)
            for (int block = 0; block < STEM_BLOCKS; block++, x += BLOCK)
                put(bits, block, compare(x, first_thresholds + block * BLOCK));
        bits += FIRST_PADDING * FIRST_WORDS;
    }
}

int @NAME@_predict(const uint8_t *pixels, float *logits)
{
    run_stem(pixels);
    binarize();
    for (int i = 0; i < UNITS; i++)
        run_unit(units + i);
    return classify(values, LAST_PIXELS, LAST_BLOCKS * BLOCK, values + LAST_SCRATCH, logits);
}
