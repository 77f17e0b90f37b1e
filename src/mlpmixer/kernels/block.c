/* What lies between the matrix products of a Mixer block on a CPU: LayerNorm, GELU, transposes, residual sums, and their gradients.
 *
 * Compiled twice by native.py: for float32, and with -DBFLOAT16 for bfloat16 tensors; arithmetic is float32 in both. Written for a compiler
 * that vectorises: no intrinsics. Sums over rows are taken in a fixed order, so that equal inputs and threads give equal bits.
 *
 * Letters as in model.py: B batch, S patches, C hidden_dim; D the hidden width of an MLP, M its rows.
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

/* e^x for |x| <= 80, the bound beyond: 2^k e^r with |r| <= ln(2)/2, Taylor's polynomial of degree 7 (error 5e-9). */
static inline float exponential(float x) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, which stands in the low bits */
    x = x > -80.0f ? x : -80.0f;
    x = x < 80.0f ? x : 80.0f;
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
static inline float gelu_tanh(float x, float *slope) {
    const float a = 1.5957691216057308f, a3 = 0.0713548162726009f; /* a3 = 0.044715 a */
    float p = 1.0f / (1.0f + exponential(-x * (a + a3 * x * x)));
    *slope = p + x * p * (1.0f - p) * (a + 3.0f * a3 * x * x);
    return x * p;
}

/* The erf form: p = erfc(-x / sqrt(2)) / 2, by Abramowitz and Stegun 7.1.26 (error 1.5e-7); p' is the normal density */
static inline float gelu_erf(float x, float *slope) {
    float z = x < 0 ? -x : x, bell = exponential(-0.5f * x * x);
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
    _Pragma("omp parallel for simd schedule(static)") \
    for (int64_t i = 0; i < n; i++) { \
        float slope; \
        h[i] = store(F(load(u[i]), &slope)); \
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
    _Pragma("omp simd") \
    for (int64_t j = 0; j < D; j++) { \
        float slope; \
        hi[j] = store(F(load(ui[j]), &slope)); \
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

/* LayerNorm of `rows` rows of C values, eps 1e-6 (official Flax), in place; the mean and 1/deviation of each row */
static inline void normalise(float *tile, int64_t rows, int64_t C, const float *gamma, const float *beta, float *mean, float *rstd) {
    for (int64_t i = 0; i < rows; i++) {
        float *row = tile + i * C, sum = 0, square = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < C; c++)
            sum += row[c];
        float m = sum / (float)C;
#pragma omp simd reduction(+ : square)
        for (int64_t c = 0; c < C; c++)
            square += (row[c] - m) * (row[c] - m);
        float r = 1.0f / sqrtf(square / (float)C + 1e-6f);
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

/* The gradient through a LayerNorm and past it: dx = g + LayerNorm'(x) dy, where dy is tokens, or columns when `columns` is set.
 * dgamma, dbeta (C), and db (C) = sum of `scale` g over the rows: the gradient of a bias that was added to the stream. dx may be g. */
void norm_backward(const T *dy, int columns, const T *x, const float *mean, const float *rstd, const float *gamma, const T *g,
                   const float *scale, T *dx, float *dgamma, float *dbeta, float *db, int64_t B, int64_t S, int64_t C) {
    int threads = omp_get_max_threads();
    float *parts = zeros(threads * 3 * C), *out = malloc(3 * C * sizeof(float));
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last;
        share(B, &first, &last);
        float *tile = malloc(TILE * C * sizeof(float)), *hat = malloc(C * sizeof(float));
        float *sum_gamma = parts + omp_get_thread_num() * 3 * C, *sum_beta = sum_gamma + C, *sum_g = sum_beta + C;
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
                    float *d = tile + i * C, m = mean[b * S + s + i], r = rstd[b * S + s + i], plain = 0, along = 0;
                    const T *xi = x + at + i * C, *gi = g + at + i * C;
#pragma omp simd reduction(+ : plain, along)
                    for (int64_t c = 0; c < C; c++) {
                        hat[c] = (load(xi[c]) - m) * r;
                        sum_gamma[c] += d[c] * hat[c];
                        sum_beta[c] += d[c];
                        sum_g[c] += factor * load(gi[c]);
                        d[c] *= gamma[c];
                        plain += d[c];
                        along += d[c] * hat[c];
                    }
                    plain /= (float)C;
                    along /= (float)C;
                    T *to = dx + at + i * C;
#pragma omp simd
                    for (int64_t c = 0; c < C; c++)
                        to[c] = store(load(gi[c]) + r * (d[c] - plain - hat[c] * along));
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
