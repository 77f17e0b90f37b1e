/* A Mixer block on a CPU. First what lies between its matrix products: LayerNorm, GELU, transposes, residual sums, and their gradients;
 * then, for float32, the whole block.
 *
 * Compiled twice by native.py: for float32, and with -DBFLOAT16 for bfloat16 tensors; arithmetic is float32 in both. Written for a compiler
 * that vectorises: no intrinsics. Sums over rows are taken in a fixed order, so that equal inputs and threads give equal bits.
 *
 * Letters as in mixer.py: B batch, S patches, C hidden_dim; D the hidden width of an MLP, M its rows.
 * Tensors are contiguous: tokens (B, S, C), "columns" (B, C, S).
 */

#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>

#ifdef BFLOAT16
typedef uint16_t T;

static inline float load(T x) {
    uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static inline T store(float f) { /* to the nearest, ties to even; the NaNs of processors, quiet and without more, stay NaN */
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return (T)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#else
typedef float T;

static inline float load(T x) { return x; }
static inline T store(float f) { return f; }
#endif

enum { TILE = 16 }; /* rows that are transposed together */

/* Beyond which exponents are cut off. The compiler is not to know it: it would compute what follows for x = 80 apart, and blend everything. */
static const volatile float BOUND = 80.0f;

/* e^x for |x| <= bound, the bound beyond: 2^k e^r with |r| <= ln(2)/2, Taylor's polynomial of degree 7 (error 5e-9). */
static inline float exponential(float x, float bound) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, which stands in the low bits */
    x = x > -bound ? x : -bound;
    x = x < bound ? x : bound;
    float shifted = x * 1.44269504f + magic, k = shifted - magic;
    float r = x - k * 0.693145752f; /* ln(2) in two parts, the first exact when multiplied by k */
    r = r - k * 1.42860677e-6f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    int32_t bits;
    memcpy(&bits, &shifted, 4);
    bits = (bits - 0x4b400000 + 127) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return p * scale;
}

/* gelu(x) = x p(x) and its slope p + x p'. Where x is NaN p is some number, and the product stays NaN. */

/* The tanh form: p = (1 + tanh(v/2)) / 2 = 1 / (1 + e^-v), v = 2 sqrt(2/pi) (x + 0.044715 x^3) */
static inline float gelu_tanh(float x, float bound, float *slope) {
    const float a = 1.5957691216057308f, a3 = 0.0713548162726009f; /* a3 = 0.044715 a */
    float p = 1.0f / (1.0f + exponential(-x * (a + a3 * x * x), bound));
    *slope = p + x * p * (1.0f - p) * (a + 3.0f * a3 * x * x);
    return x * p;
}

/* The erf form: p = erfc(-x / sqrt(2)) / 2, by Abramowitz and Stegun 7.1.26 (error 1.5e-7); p' is the normal density */
static inline float gelu_erf(float x, float bound, float *slope) {
    float z = x < 0 ? -x : x, bell = exponential(-0.5f * x * x, bound);
    float t = 1.0f / (1.0f + 0.3275911f * 0.70710678f * z);
    float tail = 1.061405429f;
    tail = tail * t - 1.453152027f;
    tail = tail * t + 1.421413741f;
    tail = tail * t - 0.284496736f;
    tail = tail * t + 0.254829592f;
    tail = 0.5f * tail * t * bell;
    float p = x < 0 ? tail : 1.0f - tail;
    *slope = p + x * bell * 0.3989422804f;
    return x * p;
}

#define EACH_GELU(F) \
    const float bound = BOUND; \
    _Pragma("omp parallel for simd schedule(static)") \
    for (int64_t i = 0; i < n; i++) { \
        float slope; \
        h[i] = store(F(load(u[i]), bound, &slope)); \
    }

void gelu(const T *u, T *h, int64_t n, int64_t erf) {
    if (erf) {
        EACH_GELU(gelu_erf)
    } else {
        EACH_GELU(gelu_tanh)
    }
}

/* Add up the rows that each thread has summed, in the order of the threads. */
static void gather(const float *parts, int threads, int64_t width, float *out) {
    for (int64_t j = 0; j < width; j++) {
        float sum = 0;
        for (int t = 0; t < threads; t++)
            sum += parts[t * width + j];
        out[j] = sum;
    }
}

static float *zeros(int64_t n) { return calloc((size_t)n, sizeof(float)); }

static inline void share(int64_t n, int64_t *from, int64_t *to) { /* the rows of this thread */
    int64_t threads = omp_get_num_threads(), t = omp_get_thread_num();
    *from = n * t / threads;
    *to = n * (t + 1) / threads;
}

#define ROW_BACKWARD(F) \
    const float bound = BOUND; \
    _Pragma("omp simd") \
    for (int64_t j = 0; j < D; j++) { \
        float slope; \
        hi[j] = store(F(load(ui[j]), bound, &slope)); \
        float d = load(di[j]) * slope; \
        di[j] = store(d); \
        sum[j] += d; \
    }

/* u, dh (M, D) -> h = gelu(u), du = dh gelu'(u) written over dh, db (D) = sum of du over the rows */
void gelu_backward(const T *u, T *dh, T *h, float *db, int64_t M, int64_t D, int64_t erf) {
    int threads = omp_get_max_threads();
    float *parts = zeros(threads * D);
#pragma omp parallel num_threads(threads)
    {
        int64_t from, to;
        share(M, &from, &to);
        float *sum = parts + omp_get_thread_num() * D;
        for (int64_t i = from; i < to; i++) {
            const T *ui = u + i * D;
            T *di = dh + i * D, *hi = h + i * D;
            if (erf) {
                ROW_BACKWARD(gelu_erf)
            } else {
                ROW_BACKWARD(gelu_tanh)
            }
        }
    }
    gather(parts, threads, D, db);
    free(parts);
}

/* The mean and 1/deviation of a row of C values, eps 1e-6 (official Flax) */
static inline void moments(const float *row, int64_t C, float *mean, float *rstd) {
    float sum = 0, square = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < C; c++)
        sum += row[c];
    float m = sum / (float)C;
#pragma omp simd reduction(+ : square)
    for (int64_t c = 0; c < C; c++)
        square += (row[c] - m) * (row[c] - m);
    *mean = m;
    *rstd = 1.0f / sqrtf(square / (float)C + 1e-6f);
}

/* LayerNorm of `rows` rows of C values, in place; the mean and 1/deviation of each row */
static inline void normalise(float *tile, int64_t rows, int64_t C, const float *gamma, const float *beta, float *mean, float *rstd) {
    for (int64_t i = 0; i < rows; i++) {
        float *row = tile + i * C, m, r;
        moments(row, C, &m, &r);
#pragma omp simd
        for (int64_t c = 0; c < C; c++)
            row[c] = (row[c] - m) * r * gamma[c] + beta[c];
        mean[i] = m;
        rstd[i] = r;
    }
}

/* Tokens x -> columns y = LayerNorm(x)^T; mean, rstd (B, S) */
void norm_to_columns(const T *x, const float *gamma, const float *beta, T *y, float *mean, float *rstd, int64_t B, int64_t S, int64_t C) {
#pragma omp parallel
    {
        float *tile = malloc(TILE * C * sizeof(float));
#pragma omp for collapse(2) schedule(static)
        for (int64_t b = 0; b < B; b++)
            for (int64_t s = 0; s < S; s += TILE) {
                int64_t rows = S - s < TILE ? S - s : TILE;
                const T *from = x + (b * S + s) * C;
                for (int64_t i = 0; i < rows * C; i++)
                    tile[i] = load(from[i]);
                normalise(tile, rows, C, gamma, beta, mean + b * S + s, rstd + b * S + s);
                T *to = y + b * C * S + s;
                for (int64_t c = 0; c < C; c++)
                    for (int64_t i = 0; i < rows; i++)
                        to[c * S + i] = store(tile[i * C + c]);
            }
        free(tile);
    }
}

/* Tokens x, columns z -> tokens u = x + scale z^T (scale (B), or null for 1) and y = LayerNorm(u); mean, rstd (B, S) */
void add_columns_and_norm(const T *x, const T *z, const float *scale, const float *gamma, const float *beta, T *u, T *y, float *mean,
                          float *rstd, int64_t B, int64_t S, int64_t C) {
#pragma omp parallel
    {
        float *tile = malloc(TILE * C * sizeof(float));
#pragma omp for collapse(2) schedule(static)
        for (int64_t b = 0; b < B; b++)
            for (int64_t s = 0; s < S; s += TILE) {
                float factor = scale ? scale[b] : 1.0f;
                int64_t rows = S - s < TILE ? S - s : TILE, at = (b * S + s) * C;
                const T *from = z + b * C * S + s;
                for (int64_t c = 0; c < C; c++)
                    for (int64_t i = 0; i < rows; i++)
                        tile[i * C + c] = factor * load(from[c * S + i]);
                for (int64_t i = 0; i < rows * C; i++) {
                    u[at + i] = store(tile[i] + load(x[at + i]));
                    tile[i] = load(u[at + i]);
                }
                normalise(tile, rows, C, gamma, beta, mean + b * S + s, rstd + b * S + s);
                for (int64_t i = 0; i < rows * C; i++)
                    y[at + i] = store(tile[i]);
            }
        free(tile);
    }
}

/* One token of what follows: d is dy, and is overwritten; hat is room for C values; sums (3, C) of dgamma, dbeta and db */
static inline void norm_backward_row(float *d, float *hat, const T *x, float mean, float rstd, const float *gamma, const T *g, float factor,
                                     T *dx, float *sums, int64_t C) {
    float plain = 0, along = 0;
#pragma omp simd reduction(+ : plain, along)
    for (int64_t c = 0; c < C; c++) {
        hat[c] = (load(x[c]) - mean) * rstd;
        sums[c] += d[c] * hat[c];
        sums[C + c] += d[c];
        sums[2 * C + c] += factor * load(g[c]);
        d[c] *= gamma[c];
        plain += d[c];
        along += d[c] * hat[c];
    }
    plain /= (float)C;
    along /= (float)C;
#pragma omp simd
    for (int64_t c = 0; c < C; c++)
        dx[c] = store(load(g[c]) + rstd * (d[c] - plain - hat[c] * along));
}

/* The gradient through a LayerNorm and past it: dx = g + LayerNorm'(x) dy, where dy is tokens, or columns when `columns` is set.
 * dgamma, dbeta (C), and db (C) = sum of `scale` g over the rows: the gradient of a bias that was added to the stream. dx may be g. */
void norm_backward(const T *dy, int64_t columns, const T *x, const float *mean, const float *rstd, const float *gamma, const T *g,
                   const float *scale, T *dx, float *dgamma, float *dbeta, float *db, int64_t B, int64_t S, int64_t C, int64_t threads) {
    float *parts = zeros(threads * 3 * C), *out = malloc(3 * C * sizeof(float));
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last;
        share(B, &first, &last);
        float *tile = malloc(TILE * C * sizeof(float)), *hat = malloc(C * sizeof(float));
        float *sums = parts + omp_get_thread_num() * 3 * C;
        for (int64_t b = first; b < last; b++) {
            float factor = scale ? scale[b] : 1.0f;
            for (int64_t s = 0; s < S; s += TILE) {
                int64_t rows = S - s < TILE ? S - s : TILE, at = (b * S + s) * C;
                if (columns) {
                    const T *from = dy + b * C * S + s;
                    for (int64_t c = 0; c < C; c++)
                        for (int64_t i = 0; i < rows; i++)
                            tile[i * C + c] = load(from[c * S + i]);
                } else
                    for (int64_t i = 0; i < rows * C; i++)
                        tile[i] = load(dy[at + i]);
                for (int64_t i = 0; i < rows; i++) {
                    int64_t t = b * S + s + i;
                    norm_backward_row(tile + i * C, hat, x + t * C, mean[t], rstd[t], gamma, g + t * C, factor, dx + t * C, sums, C);
                }
            }
        }
        free(tile);
        free(hat);
    }
    gather(parts, threads, 3 * C, out);
    memcpy(dgamma, out, C * sizeof(float));
    memcpy(dbeta, out + C, C * sizeof(float));
    memcpy(db, out + 2 * C, C * sizeof(float));
    free(parts);
    free(out);
}

/* Tokens g -> columns d = scale g^T, and db (S) = its sum over batch and channels */
void to_columns(const T *g, const float *scale, T *d, float *db, int64_t B, int64_t S, int64_t C) {
    int threads = omp_get_max_threads();
    float *parts = zeros(threads * S);
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last;
        share(B, &first, &last);
        float *sum = parts + omp_get_thread_num() * S, *tile = malloc(TILE * C * sizeof(float));
        for (int64_t b = first; b < last; b++) {
            float factor = scale ? scale[b] : 1.0f;
            for (int64_t s = 0; s < S; s += TILE) {
                int64_t rows = S - s < TILE ? S - s : TILE;
                const T *from = g + (b * S + s) * C;
                for (int64_t i = 0; i < rows; i++) {
                    float total = 0;
#pragma omp simd reduction(+ : total)
                    for (int64_t c = 0; c < C; c++) {
                        tile[i * C + c] = factor * load(from[i * C + c]);
                        total += tile[i * C + c];
                    }
                    sum[s + i] += total;
                }
                T *to = d + b * C * S + s;
                for (int64_t c = 0; c < C; c++)
                    for (int64_t i = 0; i < rows; i++)
                        to[c * S + i] = store(tile[i * C + c]);
            }
        }
        free(tile);
    }
    gather(parts, threads, S, db);
    free(parts);
}

#ifndef BFLOAT16
/* ---- A whole block in float32, products included.
 *
 * Both MLPs are w2 gelu(w1 y + b1) + b2 of rows y (M, K), K values into D hidden ones: a row is a token in channel mixing, and a channel of
 * an image in token mixing. Rows go through an MLP by chunks, with all that lies between two products, while they are in the second level of
 * cache. In a chunk a matrix (rows, F) lies as panels (F / LANES, rows, LANES), which serve as either side of each product:
 *
 *   multiply   TALL rows times a panel of weights:  u = y w1', z = h w2', dh = g w2, dy = du w1
 *   outer      the sum over the rows of TALL features times a panel:  dw2 = g' h, dw1 = du' y
 *
 * each with its sums in registers: 12 vectors for TALL * LANES of them.
 */

#ifdef __AVX512F__
enum { VECTOR = 16, DEEP = 128 };
#define INDICES {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
#else
enum { VECTOR = 8, DEEP = 256 };
#define INDICES {0, 1, 2, 3, 4, 5, 6, 7}
#endif
enum { LANES = 2 * VECTOR, TALL = 6, MOST = 16, NEAR = 2 << 20 };
/* A vector is a register. A chunk has MOST * TALL rows at most, which the second level of cache holds with what belongs
 * to them; of a panel of weights DEEP rows are read at a time, which the first level holds; of its chunks each thread
 * keeps about NEAR bytes for dw1 and dw2. */

typedef float vector __attribute__((vector_size(VECTOR * 4), aligned(4), may_alias));

const int64_t lanes = LANES, tall = TALL;

typedef int32_t integers __attribute__((vector_size(VECTOR * 4)));

static inline vector read(const float *from) { return *(const vector *)from; }
static inline void write(float *to, vector v) { *(vector *)to = v; }

/* Row i of a square of values becomes column i: halves are exchanged, then quarters, ... */
static inline void transpose(vector v[VECTOR]) {
    const integers at = INDICES;
#pragma GCC unroll 4
    for (int h = VECTOR / 2; h; h /= 2) {
        integers low = at + (((at & h) != 0) & (VECTOR - h)), high = low + h;
#pragma GCC unroll 16
        for (int i = 0; i < VECTOR; i++)
            if (!(i & h)) {
                vector a = v[i], b = v[i + h];
                v[i] = __builtin_shuffle(a, b, low);
                v[i + h] = __builtin_shuffle(a, b, high);
            }
    }
}

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t over(int64_t a, int64_t b) { return (a + b - 1) / b; } /* a / b, rounded up */
static inline int64_t padded(int64_t features) { return over(features, LANES) * LANES; }

typedef struct {
    int64_t from, there, rows; /* the first row, how many there are, and that many with those that fill the last tile */
} Chunk;

/* w (N, K), whose rows and columns are `down` and `right` apart -> (N / LANES, K, LANES), zeros beyond N */
void pack(const float *w, float *packed, int64_t N, int64_t K, int64_t down, int64_t right) {
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t n = 0; n < N; n += LANES)
        for (int64_t k = 0; k < K; k++)
            for (int64_t i = 0; i < LANES; i++)
                packed[n * K + k * LANES + i] = n + i < N ? w[(n + i) * down + k * right] : 0;
}

/* out (TALL, LANES) += a w, of TALL rows of panels a that are `next` apart, and w (K, LANES) */
static inline void multiply(const float *a, int64_t next, const float *w, float *out, int64_t K) {
    vector sum[TALL][2];
#pragma GCC unroll 6
    for (int i = 0; i < TALL; i++) {
        sum[i][0] = read(out + i * LANES);
        sum[i][1] = read(out + i * LANES + VECTOR);
    }
    for (; K > 0; K -= LANES, a += next) {
        const float *ak = a, *end = w + least(K, LANES) * LANES;
        for (; w < end; ak++, w += LANES) {
            vector w0 = read(w), w1 = read(w + VECTOR);
#pragma GCC unroll 6
            for (int i = 0; i < TALL; i++) {
                sum[i][0] += ak[i * LANES] * w0;
                sum[i][1] += ak[i * LANES] * w1;
            }
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < TALL; i++) {
        write(out + i * LANES, sum[i][0]);
        write(out + i * LANES + VECTOR, sum[i][1]);
    }
}

/* Panels out (F / LANES, rows, LANES) += a w, of panels a (K / LANES, rows, LANES), and panels of w (K, LANES) that are `stride` apart */
static void add_product(const float *a, const float *w, int64_t stride, float *out, int64_t rows, int64_t K, int64_t F) {
    int64_t next = rows * LANES;
    for (; F > 0; F -= LANES, w += stride, out += next)
        for (int64_t k = 0; k < K; k += DEEP) {
            int64_t depth = least(K - k, DEEP), ahead = depth * LANES * (int64_t)sizeof(float) / MOST;
            const char *next_w = (const char *)(k + depth < K ? w + (k + depth) * LANES : w + stride);
            for (int64_t r = 0; r < rows; r += TALL, next_w += ahead) { /* what follows comes from afar while this is multiplied */
                for (int64_t i = 0; i < ahead; i += 64)
                    __builtin_prefetch(next_w + i, 0, 2);
                multiply(a + k * rows + r * LANES, next, w + k * LANES, out + r * LANES, depth);
            }
        }
}

/* Rows p to p + TALL and columns q to q + LANES of out (P, Q) += a' b, of panels a (P / LANES, rows, LANES) and b (Q / LANES, rows, LANES) */
static void outer(const float *a, const float *b, Chunk c, float *out, int64_t p, int64_t q, int64_t P, int64_t Q) {
    const float *from[TALL];
    for (int i = 0; i < TALL; i++) {
        int64_t f = least(p + i, P - 1);
        from[i] = a + f / LANES * c.rows * LANES + f % LANES;
    }
    const float *a0 = from[0], *a1 = from[1], *a2 = from[2], *a3 = from[3], *a4 = from[4], *a5 = from[5];
    vector sum[TALL][2] = {0};
    b += q * c.rows;
    for (int64_t n = 0; n < c.there * LANES; n += LANES) {
        vector b0 = read(b + n), b1 = read(b + n + VECTOR);
#define ADD(I) sum[I][0] += a##I[n] * b0, sum[I][1] += a##I[n] * b1
        ADD(0), ADD(1), ADD(2), ADD(3), ADD(4), ADD(5);
#undef ADD
    }
    float tile[TALL][LANES];
    memcpy(tile, sum, sizeof tile);
    int64_t high = least(TALL, P - p), wide = least(LANES, Q - q);
    for (int64_t i = 0; i < high; i++)
        for (int64_t j = 0; j < wide; j++)
            out[(p + i) * Q + q + j] += tile[i][j];
}

/* This thread's share of the tiles of out (P, Q) += a' b */
static void add_outer_product(const float *a, const float *b, Chunk c, float *out, int64_t P, int64_t Q) {
    int64_t from, to, high = over(P, TALL);
    share(high * over(Q, LANES), &from, &to);
    for (int64_t i = from; i < to; i++)
        outer(a, b, c, out, i % high * TALL, i / high * LANES, P, Q);
}

static void fill(float *panels, const float *values, int64_t rows, int64_t F) { /* each row with F values, and zeros beyond */
    for (int64_t f = 0; f < F; f += LANES)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t j = 0; j < LANES; j++)
                panels[f * rows + r * LANES + j] = f + j < F ? values[f + j] : 0;
}

static void add_rows(const float *panels, float *sum, Chunk c, int64_t F) { /* sum (F) += all rows */
    for (int64_t f = 0; f < F; f += LANES) {
        float lane[LANES] = {0};
        for (int64_t r = 0; r < c.there; r++)
            for (int64_t j = 0; j < LANES; j++)
                lane[j] += panels[f * c.rows + r * LANES + j];
        for (int64_t j = 0; j < least(LANES, F - f); j++)
            sum[f + j] += lane[j];
    }
}

/* ---- An MLP on a chunk of rows */

typedef struct {
    int64_t M, K, D, erf, chunks; /* chunks of a length, as many for each thread */
} MLP;

static MLP mlp_of(int64_t M, int64_t K, int64_t D, int64_t threads, int64_t erf) {
    return (MLP){M, K, D, erf, threads * over(over(M, TALL), threads * MOST)};
}

static inline Chunk chunk_of(const MLP *m, int64_t i) {
    int64_t tiles = over(m->M, TALL), from = tiles * i / m->chunks * TALL, to = tiles * (i + 1) / m->chunks * TALL;
    return (Chunk){from, least(to, m->M) - from, to - from};
}

#define EACH_PANEL(F, AND) \
    _Pragma("omp simd private(slope)") \
    for (int64_t i = 0; i < rows * LANES; i++) { \
        h[i] = F(u[i], bound, &slope); \
        AND; \
    }

static void gelu_panel(const float *u, float *h, int64_t rows, int64_t erf) {
    const float bound = BOUND;
    float slope;
    if (erf) {
        EACH_PANEL(gelu_erf, )
    } else {
        EACH_PANEL(gelu_tanh, )
    }
}

/* du is dh before */
static void gelu_backward_panel(const float *u, float *h, float *du, int64_t rows, int64_t erf) {
    const float bound = BOUND;
    float slope;
    if (erf) {
        EACH_PANEL(gelu_erf, du[i] *= slope)
    } else {
        EACH_PANEL(gelu_tanh, du[i] *= slope)
    }
}

/* y -> z = gelu(y w1' + b1) w2' + b2; h has room for DEEP hidden values of each row; u, unless null, gets what gelu is taken of */
static void forward_chunk(const MLP *m, Chunk c, const float *y, const float *w1, const float *b1, const float *w2, const float *b2, float *u,
                          float *h, float *z) {
    fill(z, b2, c.rows, m->K);
    for (int64_t d = 0; d < m->D; d += DEEP) {
        int64_t depth = least(DEEP, m->D - d);
        for (int64_t f = 0; f < depth; f += LANES) {
            float *panel = h + f * c.rows;
            fill(panel, b1 + d + f, c.rows, least(LANES, depth - f));
            add_product(y, w1 + (d + f) * m->K, m->K * LANES, panel, c.rows, m->K, 1);
            if (u)
                memcpy(u + (d + f) * c.rows, panel, c.rows * LANES * sizeof(float));
            gelu_panel(panel, panel, c.rows, m->erf);
        }
        add_product(h, w2 + d * LANES, m->D * LANES, z, c.rows, depth, m->K);
    }
}

/* g, u -> h = gelu(u), du = (g w2) gelu'(u), dy = du w1 */
static void backward_chunk(const MLP *m, Chunk c, const float *g, const float *u, const float *w1, const float *w2, float *h, float *du,
                           float *dy) {
    memset(dy, 0, c.rows * padded(m->K) * sizeof(float));
    for (int64_t d = 0; d < m->D; d += DEEP) {
        int64_t depth = least(DEEP, m->D - d);
        for (int64_t f = d; f < d + depth; f += LANES) {
            float *panel = du + f * c.rows;
            memset(panel, 0, c.rows * LANES * sizeof(float));
            add_product(g, w2 + f * m->K, m->K * LANES, panel, c.rows, m->K, 1);
            gelu_backward_panel(u + f * c.rows, h + f * c.rows, panel, c.rows, m->erf);
        }
        add_product(du + d * c.rows, w1 + d * LANES, m->D * LANES, dy, c.rows, depth, m->K);
    }
}

/* ---- From tokens (B, S, C) to panels and back. Where there are mean and rstd, what is read is LayerNorm(x); elsewhere it is scale x. */

typedef struct {
    const float *x, *mean, *rstd, *gamma, *beta, *scale;
} Source;

static inline float scale_of(const float *scale, int64_t image) { return scale ? scale[image] : 1.0f; }

static inline float read_one(const Source *from, int64_t t, int64_t c, int64_t C, float factor) {
    float x = from->x[t * C + c];
    return from->mean ? (x - from->mean[t]) * from->rstd[t] * from->gamma[c] + from->beta[c] : factor * x;
}

static inline vector read_many(const Source *from, int64_t t, int64_t c, int64_t C, float factor) { /* channels c to c + VECTOR */
    vector x = read(from->x + t * C + c);
    return from->mean ? (x - from->mean[t]) * from->rstd[t] * read(from->gamma + c) + read(from->beta + c) : factor * x;
}

static void read_tokens(const Source *from, float *y, Chunk chunk, int64_t S, int64_t C) {
    if (chunk.there < chunk.rows || C % LANES)
        memset(y, 0, padded(C) * chunk.rows * sizeof(float));
    for (int64_t r = 0; r < chunk.there; r++) {
        int64_t t = chunk.from + r, c = 0;
        float factor = scale_of(from->scale, t / S), *to = y + r * LANES;
        for (; c + VECTOR <= C; c += VECTOR)
            write(to + c / LANES * LANES * chunk.rows + c % LANES, read_many(from, t, c, C, factor));
        for (; c < C; c++)
            to[c / LANES * LANES * chunk.rows + c % LANES] = read_one(from, t, c, C, factor);
    }
}

/* Tokens out = x + scale z */
static void write_tokens(const float *z, const float *x, const float *scale, float *out, Chunk chunk, int64_t S, int64_t C) {
    for (int64_t r = 0; r < chunk.there; r++) {
        int64_t t = chunk.from + r, at = t * C, c = 0;
        const float factor = scale_of(scale, t / S), *from = z + r * LANES;
        for (; c + VECTOR <= C; c += VECTOR)
            write(out + at + c, read(x + at + c) + factor * read(from + c / LANES * LANES * chunk.rows + c % LANES));
        for (; c < C; c++)
            out[at + c] = x[at + c] + factor * from[c / LANES * LANES * chunk.rows + c % LANES];
    }
}

/* Rows r to r + n of a chunk are channels from c on of image b; those after them are the next image's */
#define EACH_IMAGE \
    for (int64_t r = 0, n, b, c; r < chunk.there && (b = (chunk.from + r) / C, c = (chunk.from + r) % C, n = least(C - c, chunk.there - r)); \
         r += n)

static void read_channels(const Source *from, float *y, Chunk chunk, int64_t S, int64_t C) {
    if (chunk.there < chunk.rows || S % LANES)
        memset(y, 0, padded(S) * chunk.rows * sizeof(float));
    EACH_IMAGE {
        float factor = scale_of(from->scale, b);
        for (int64_t s = 0; s < S; s += VECTOR) {
            float *to = y + s / LANES * LANES * chunk.rows + r * LANES + s % LANES;
            int64_t t = b * S + s, there = least(VECTOR, S - s), i = 0;
            for (; i + VECTOR <= n; i += VECTOR) {
                vector square[VECTOR];
                for (int j = 0; j < VECTOR; j++)
                    square[j] = j < there ? read_many(from, t + j, c + i, C, factor) : (vector){0};
                transpose(square);
                for (int j = 0; j < VECTOR; j++)
                    write(to + (i + j) * LANES, square[j]);
            }
            for (; i < n; i++)
                for (int64_t j = 0; j < there; j++)
                    to[i * LANES + j] = read_one(from, t + j, c + i, C, factor);
        }
    }
}

/* Tokens out = x + scale z, where x may be null for 0 */
static void write_channels(const float *z, const float *x, const float *scale, float *out, Chunk chunk, int64_t S, int64_t C) {
    EACH_IMAGE {
        float factor = scale_of(scale, b);
        for (int64_t s = 0; s < S; s += VECTOR) {
            const float *from = z + s / LANES * LANES * chunk.rows + r * LANES + s % LANES;
            int64_t at = (b * S + s) * C + c, there = least(VECTOR, S - s), i = 0;
            for (; i + VECTOR <= n; i += VECTOR) {
                vector square[VECTOR];
                for (int j = 0; j < VECTOR; j++)
                    square[j] = read(from + (i + j) * LANES);
                transpose(square);
                for (int64_t j = 0; j < there; j++)
                    write(out + at + j * C + i, (x ? read(x + at + j * C + i) : (vector){0}) + factor * square[j]);
            }
            for (; i < n; i++)
                for (int64_t j = 0; j < there; j++)
                    out[at + j * C + i] = (x ? x[at + j * C + i] : 0) + factor * from[i * LANES + j];
        }
    }
}

static float *room(int64_t floats) { return aligned_alloc(64, over(floats, 16) * 64); }

/* ---- The block of equation (1) */

/* Tokens x -> tokens u after token mixing, and out. Weights are packed; scale1, scale2 (B) of the two branches, or null for 1. For the
 * gradients: mean and rstd (B, S) of both LayerNorms, and hidden1, hidden2, in panels; without them the two are null and u may be out. */
void forward(const float *x, const float *gamma1, const float *beta1, const float *w1, const float *b1, const float *w2, const float *b2,
             const float *gamma2, const float *beta2, const float *w3, const float *b3, const float *w4, const float *b4, const float *scale1,
             const float *scale2, float *mean1, float *rstd1, float *mean2, float *rstd2, float *hidden1, float *hidden2, float *u, float *out,
             int64_t B, int64_t S, int64_t C, int64_t DS, int64_t DC, int64_t threads, int64_t erf) {
    MLP tokens = mlp_of(B * C, S, DS, threads, erf), channels = mlp_of(B * S, C, DC, threads, erf);
    int64_t wide = padded(S > C ? S : C), rows = MOST * TALL;
    Source x1 = {x, mean1, rstd1, gamma1, beta1, 0}, x2 = {u, mean2, rstd2, gamma2, beta2, 0};
#pragma omp parallel num_threads(threads)
    {
        float *y = room((2 * wide + DEEP) * rows), *z = y + wide * rows, *h = z + wide * rows;
#pragma omp for schedule(static)
        for (int64_t t = 0; t < B * S; t++)
            moments(x + t * C, C, mean1 + t, rstd1 + t);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < tokens.chunks; i++) {
            Chunk c = chunk_of(&tokens, i);
            read_channels(&x1, y, c, S, C);
            forward_chunk(&tokens, c, y, w1, b1, w2, b2, hidden1 ? hidden1 + c.from * padded(DS) : 0, h, z);
            write_channels(z, x, scale1, u, c, S, C);
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < channels.chunks; i++) {
            Chunk c = chunk_of(&channels, i);
            for (int64_t t = c.from; t < c.from + c.there; t++)
                moments(u + t * C, C, mean2 + t, rstd2 + t);
            read_tokens(&x2, y, c, S, C);
            forward_chunk(&channels, c, y, w3, b3, w4, b4, hidden2 ? hidden2 + c.from * padded(DC) : 0, h, z);
            write_tokens(z, u, scale2, out, c, S, C);
        }
        free(y);
    }
}

/* ---- Its gradients. Chunks go by groups: each thread takes its chunks back to dy, and then its tiles of dw1 and dw2 over all of them. */

typedef struct {
    float *y, *g, *h, *du;
} Kept;

typedef struct {
    float *memory;
    int64_t wide, deep, chunks; /* values of y and g, and of h and du, in a chunk; chunks of a group */
} Group;

static Group group_of(const MLP *m, int64_t threads) {
    Group g = {0, MOST * TALL * padded(m->K), MOST * TALL * padded(m->D), threads};
    int64_t each = m->chunks / threads, most = NEAR / (2 * (g.wide + g.deep) * (int64_t)sizeof(float));
    if (each > 1 && most > 1)
        g.chunks = threads * over(each, over(each, most)); /* groups of a size */
    g.memory = room(g.chunks * 2 * (g.wide + g.deep));
    return g;
}

static inline Kept kept_of(const Group *g, int64_t i) {
    float *y = g->memory + i % g->chunks * 2 * (g->wide + g->deep), *h = y + 2 * g->wide;
    return (Kept){y, y + g->wide, h, h + g->deep};
}

/* dw2 += g' h, dw1 += du' y */
static void add_weight_gradients(const MLP *m, const Group *group, int64_t first, int64_t last, float *dw1, float *dw2) {
    for (int64_t i = first; i < last; i++) {
        Chunk c = chunk_of(m, i);
        Kept k = kept_of(group, i);
        add_outer_product(k.g, k.h, c, dw2, m->K, m->D);
        add_outer_product(k.du, k.y, c, dw1, m->D, m->K);
    }
}

/* Of g, the gradient with respect to `out`: dx, and those of all parameters; weights are packed the other way. g1, dy (B, S, C) are room */
void backward(const float *g, const float *x, const float *u, const float *mean1, const float *rstd1, const float *mean2, const float *rstd2,
              const float *hidden1, const float *hidden2, const float *gamma1, const float *beta1, const float *w1, const float *w2,
              const float *gamma2, const float *beta2, const float *w3, const float *w4, const float *scale1, const float *scale2, float *g1,
              float *dy, float *dx, float *dgamma1, float *dbeta1, float *dw1, float *db1, float *dw2, float *db2, float *dgamma2,
              float *dbeta2, float *dw3, float *db3, float *dw4, float *db4, int64_t B, int64_t S, int64_t C, int64_t DS, int64_t DC,
              int64_t threads, int64_t erf) {
    MLP tokens = mlp_of(B * C, S, DS, threads, erf), channels = mlp_of(B * S, C, DC, threads, erf);
    Group group2 = group_of(&channels, threads), group1 = group_of(&tokens, threads);
    Source x1 = {x, mean1, rstd1, gamma1, beta1, 0}, x2 = {u, mean2, rstd2, gamma2, beta2, 0}, from1 = {.x = g1, .scale = scale1},
           from2 = {.x = g, .scale = scale2};
    int64_t width = 3 * C + DC + S + DS, rows = MOST * TALL;
    float *parts = zeros(threads * width), *sums = room(width), *unused = room(C);
    memset(dw1, 0, S * DS * sizeof(float));
    memset(dw2, 0, S * DS * sizeof(float));
    memset(dw3, 0, C * DC * sizeof(float));
    memset(dw4, 0, C * DC * sizeof(float));
#pragma omp parallel num_threads(threads)
    {
        float *z = room(padded(S > C ? S : C) * rows + padded(C) + C), *row = z + padded(S > C ? S : C) * rows, *hat = row + padded(C);
        float *norm_sums = parts + omp_get_thread_num() * width, *sum3 = norm_sums + 3 * C, *sum2 = sum3 + DC, *sum1 = sum2 + S;
        for (int64_t first = 0; first < channels.chunks; first += group2.chunks) {
            int64_t last = least(first + group2.chunks, channels.chunks);
#pragma omp for schedule(static)
            for (int64_t i = first; i < last; i++) {
                Chunk c = chunk_of(&channels, i);
                Kept k = kept_of(&group2, i);
                read_tokens(&x2, k.y, c, S, C);
                read_tokens(&from2, k.g, c, S, C);
                backward_chunk(&channels, c, k.g, hidden2 + c.from * padded(DC), w3, w4, k.h, k.du, z);
                add_rows(k.du, sum3, c, DC);
                for (int64_t r = 0; r < c.there; r++) {
                    int64_t t = c.from + r;
                    for (int64_t c0 = 0; c0 < C; c0 += LANES) /* row has room for all lanes */
                        memcpy(row + c0, z + c0 * c.rows + r * LANES, LANES * sizeof(float));
                    norm_backward_row(row, hat, u + t * C, mean2[t], rstd2[t], gamma2, g + t * C, scale_of(scale2, t / S), g1 + t * C,
                                      norm_sums, C);
                }
            }
            add_weight_gradients(&channels, &group2, first, last, dw3, dw4);
#pragma omp barrier
        }
        for (int64_t first = 0; first < tokens.chunks; first += group1.chunks) {
            int64_t last = least(first + group1.chunks, tokens.chunks);
#pragma omp for schedule(static)
            for (int64_t i = first; i < last; i++) {
                Chunk c = chunk_of(&tokens, i);
                Kept k = kept_of(&group1, i);
                read_channels(&x1, k.y, c, S, C);
                read_channels(&from1, k.g, c, S, C);
                backward_chunk(&tokens, c, k.g, hidden1 + c.from * padded(DS), w1, w2, k.h, k.du, z);
                add_rows(k.g, sum2, c, S);
                add_rows(k.du, sum1, c, DS);
                write_channels(z, 0, 0, dy, c, S, C);
            }
            add_weight_gradients(&tokens, &group1, first, last, dw1, dw2);
#pragma omp barrier
        }
        free(z);
    }
    gather(parts, threads, width, sums);
    float *to[] = {dgamma2, dbeta2, db4, db3, db2, db1}, *from = sums;
    int64_t lengths[] = {C, C, C, DC, S, DS};
    for (int i = 0; i < 6; from += lengths[i++])
        memcpy(to[i], from, lengths[i] * sizeof(float));
    norm_backward(dy, 0, x, mean1, rstd1, gamma1, g1, 0, dx, dgamma1, dbeta1, unused, B, S, C, threads);
    free(group1.memory);
    free(group2.memory);
    free(parts);
    free(sums);
    free(unused);
}
#endif
