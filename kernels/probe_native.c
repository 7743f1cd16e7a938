/* The element-wise halves of a probe step on a CPU, each one pass over memory. Plain C that gcc vectorises.
 *
 * `low` says that the large arrays are bfloat16 (the upper half of a float32, as uint16_t), else float32. Arithmetic
 * is float32; a sum over a batch is made of LANES partial sums for each part of the batch that a thread works on, so
 * that its last bits depend on the number of threads where there are more of them than heads. Nothing else does. NaN
 * goes on into every result that depends on it. Threads are OpenMP's.
 * Shapes: K heads, C outputs, B rows of the batch, H hidden units, D features. Arrays are contiguous, last axis
 * fastest.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#ifdef __SSE__
#include <xmmintrin.h>
#endif

#define LANES 32 /* rows at once: one cache line of bfloat16 */
enum { OK, NO_MEMORY, BAD_TARGET };
#define INLINE static inline __attribute__((always_inline))

/* Subnormal numbers, as gradients of what is long learned become, cost a CPU a hundred times as much as others and are
 * worth nothing: threads take them for 0 from here to restore(). */
INLINE unsigned flush_subnormal(void) {
#ifdef __SSE__
    unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040);
    return before;
#else
    return 0;
#endif
}

INLINE void restore(unsigned before) {
#ifdef __SSE__
    _mm_setcsr(before);
#else
    (void)before;
#endif
}

typedef union {
    uint32_t bits;
    float value;
} word;

INLINE float value_of(uint32_t bits) {
    word w = {.bits = bits};
    return w.value;
}

INLINE uint32_t bits_of(float value) {
    word w = {.value = value};
    return w.bits;
}

INLINE float get(const void *p, int64_t i, int low) {
    return low ? value_of((uint32_t)((const uint16_t *)p)[i] << 16) : ((const float *)p)[i];
}

/* rounds to nearest, ties to even; a NaN loses its payload, which rounding could carry over into a number */
INLINE void put(void *p, int64_t i, float value, int low) {
    if (low) {
        uint32_t bits = bits_of(value);
        uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        ((uint16_t *)p)[i] = (uint16_t)(value == value ? rounded : 0x7fc0);
    } else {
        ((float *)p)[i] = value;
    }
}

/* float16 to float32, subnormal numbers, infinities and NaN included, whether or not the thread flushes its own */
INLINE float half_value(uint16_t h) {
    uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13;
    uint32_t normal = magnitude + ((h & 0x7c00) == 0x7c00 ? 224u << 23 : 112u << 23);
    uint32_t small = bits_of(value_of(magnitude + (113u << 23)) - value_of(113u << 23));
    return value_of(((h & 0x7c00) ? normal : small) | ((uint32_t)(h & 0x8000) << 16));
}

/* exp for x <= 0 to 2 ulp (Cephes' polynomial), exp(-87) below -87 */
INLINE float exp_negative(float given) {
    float x = given > -87.0f ? given : -87.0f;
    float n = x * 1.44269504f + 12582912.0f; /* adding 1.5 x 2^23 leaves the nearest whole number in the low bits */
    uint32_t whole = bits_of(n) << 23;
    float r = x - (n - 12582912.0f) * 0.693359375f; /* log 2 in two parts: the first product is exact */
    r = r - (n - 12582912.0f) * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return given == given ? value_of(bits_of(p) + whole) : given;
}

/* natural logarithm of a number >= 1 to 2 ulp or 1e-7 (Cephes' polynomial) */
INLINE float log_positive(float x) {
    uint32_t bits = bits_of(x) - 0x3f3504f3; /* sqrt(1/2): the rest lies in [sqrt(1/2), sqrt(2)) */
    float e = (float)((int32_t)bits >> 23);
    float r = value_of((bits & 0x007fffff) + 0x3f3504f3) - 1.0f;
    float s = r * r;
    float p = 7.0376836292e-2f;
    p = p * r - 1.1514610310e-1f;
    p = p * r + 1.1676998740e-1f;
    p = p * r - 1.2420140846e-1f;
    p = p * r + 1.4249322787e-1f;
    p = p * r - 1.6668057665e-1f;
    p = p * r + 2.0000714765e-1f;
    p = p * r - 2.4999993993e-1f;
    p = p * r + 3.3333331174e-1f;
    p = p * r * s + e * -2.12194440e-4f - 0.5f * s;
    return x == x ? r + p + e * 0.693359375f : x;
}

/* in any order, which a plain loop over floats may not be added in */
INLINE float sum_lanes(const float *x) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < LANES; i++)
        sum += x[i];
    return sum;
}

/* ---- features: rows of a float16 or float32 table, (x - mean) * scale ---- */

INLINE void gather_row(const void *x, int64_t row, int64_t width, const float *mean, const float *scale, void *out,
                       int64_t at, int half, int low) {
    for (int64_t d = 0; d < width; d++) {
        float value = half ? half_value(((const uint16_t *)x)[row * width + d]) : ((const float *)x)[row * width + d];
        put(out, at * width + d, (value - mean[d]) * scale[d], low);
    }
}

/* out (count, width) = rows of x (rows, width) */
void probe_gather(const void *x, const int64_t *row, int64_t count, int64_t width, const float *mean,
                  const float *scale, void *out, int half, int low, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; i++) {
        /* random rows: the next one is fetched while this one is read */
        const char *next = (const char *)x + row[i + 1 < count ? i + 1 : i] * width * (half ? 2 : 4);
        for (int64_t d = 0; d < width * (half ? 2 : 4); d += 64)
            __builtin_prefetch(next + d);
        if (half && low)
            gather_row(x, row[i], width, mean, scale, out, i, 1, 1);
        else if (half)
            gather_row(x, row[i], width, mean, scale, out, i, 1, 0);
        else if (low)
            gather_row(x, row[i], width, mean, scale, out, i, 0, 1);
        else
            gather_row(x, row[i], width, mean, scale, out, i, 0, 0);
    }
}

/* ---- cross-entropy of rows [first, last) over outputs [low_output, high_output) ---- */

typedef struct {
    const int64_t *target; /* (last - first), counted from low_output */
    const float *share;    /* (K, last - first) weight of each row, NULL for 1 / (last - first) */
    const float *scale;    /* (K) factor of the loss, NULL for 1 */
    int64_t first, last, low_output, high_output;
} term;

/* whether all of them lie in [0, limit): they are used as places in memory */
INLINE int within(const int64_t *target, int64_t count, int64_t limit) {
    int outside = 0;
    for (int64_t i = 0; i < count; i++)
        outside |= target[i] < 0 || target[i] >= limit;
    return !outside;
}

/* logits of LANES rows from `at` on into x, (outputs, LANES), bias added; lanes beyond `count` hold 0 */
INLINE void load_logits(const void *z, int64_t at, int64_t batch, int64_t count, int64_t outputs, const float *bias,
                        float *x, int low) {
    for (int64_t c = 0; c < outputs; c++) {
        float b = bias ? bias[c] : 0.0f;
        /* the next lanes of every output: lines that far apart are not fetched ahead by themselves */
        __builtin_prefetch((const char *)z + (c * batch + at + LANES) * (low ? 2 : 4), 1);
        if (count == LANES) {
            for (int i = 0; i < LANES; i++)
                x[c * LANES + i] = get(z, c * batch + at + i, low) + b;
        } else {
            for (int i = 0; i < LANES; i++)
                x[c * LANES + i] = i < count ? get(z, c * batch + at + i, low) + b : 0.0f;
        }
    }
}

/* largest logit of each lane */
INLINE void maxima(const float *x, int64_t outputs, float *top) {
    for (int i = 0; i < LANES; i++)
        top[i] = x[i];
    for (int64_t c = 1; c < outputs; c++)
        for (int i = 0; i < LANES; i++)
            top[i] = x[c * LANES + i] > top[i] ? x[c * LANES + i] : top[i];
}

/* x becomes exp(x - top), total its sum over the outputs */
INLINE void exponentials(float *x, int64_t outputs, const float *top, float *total) {
    for (int i = 0; i < LANES; i++)
        total[i] = 0.0f;
    for (int64_t c = 0; c < outputs; c++)
        for (int i = 0; i < LANES; i++) {
            float e = exp_negative(x[c * LANES + i] - top[i]);
            x[c * LANES + i] = e;
            total[i] += e;
        }
}

/* one head, rows [first, last) of one term: z becomes the gradient, dbias (outputs, LANES) and the loss are added to */
INLINE float term_block(void *z, int64_t batch, int64_t outputs, const float *bias, const term *t, int64_t head,
                        int64_t first, int64_t last, float *x, float *dbias, int low) {
    int64_t inner = t->high_output - t->low_output, all = t->last - t->first;
    float factor = t->scale ? t->scale[head] : 1.0f, loss = 0.0f;
    float top[LANES], total[LANES], hit[LANES], weight[LANES];
    for (int64_t at = first; at < last; at += LANES) {
        int64_t count = last - at < LANES ? last - at : LANES;
        const int64_t *target = t->target + (at - t->first);
        char *own = (char *)z + t->low_output * batch * (low ? 2 : 4);
        load_logits(own, at, batch, count, inner, bias ? bias + t->low_output : NULL, x, low);
        for (int i = 0; i < LANES; i++) {
            hit[i] = i < count ? x[target[i] * LANES + i] : 0.0f;
            weight[i] = i < count ? factor : 0.0f;
        }
        if (t->share)
            for (int i = 0; i < count; i++)
                weight[i] *= t->share[head * all + at - t->first + i];
        else
            for (int i = 0; i < LANES; i++)
                weight[i] /= (float)all;
        maxima(x, inner, top);
        exponentials(x, inner, top, total);
        for (int i = 0; i < count; i++)
            x[target[i] * LANES + i] -= total[i];
        for (int i = 0; i < LANES; i++) {
            hit[i] = (log_positive(total[i]) + top[i] - hit[i]) * weight[i];
            weight[i] /= total[i];
        }
        loss += sum_lanes(hit);
        for (int64_t c = 0; c < inner; c++) {
            float *sum = dbias + (t->low_output + c) * LANES;
            for (int i = 0; i < LANES; i++) {
                x[c * LANES + i] *= weight[i];
                sum[i] += x[c * LANES + i];
            }
            if (count == LANES)
                for (int i = 0; i < LANES; i++)
                    put(own, c * batch + at + i, x[c * LANES + i], low);
            else
                for (int i = 0; i < count; i++)
                    put(own, c * batch + at + i, x[c * LANES + i], low);
        }
        for (int64_t c = 0; c < outputs; c++)
            if (c < t->low_output || c >= t->high_output)
                for (int i = 0; i < count; i++)
                    put(z, c * batch + at + i, 0.0f, low);
    }
    return loss;
}

/* z (K, C, B) logits without their bias (K, C) become gradients; loss (K) and dbias (K, C) are written.
 * The terms' rows are disjoint and together all rows, their outputs at least one. Returns OK, or why nothing is written
 * (BAD_TARGET) or only a part (NO_MEMORY).
 */
int probe_cross_entropy(void *z, int64_t heads, int64_t outputs, int64_t batch, const float *bias, const term *terms,
                        int64_t count, float *loss, float *dbias, int low, int threads) {
    if (heads == 0)
        return OK;
    for (int64_t n = 0; n < count; n++)
        if (!within(terms[n].target, terms[n].last - terms[n].first, terms[n].high_output - terms[n].low_output))
            return BAD_TARGET;
    int64_t parts = threads > heads ? threads / heads : 1, size = outputs * LANES, failed = 0;
    int64_t most = batch / LANES + 1; /* a part is at least one block of lanes */
    parts = parts < most ? parts : most;
    float *partial = calloc(heads * parts * (size + 1), sizeof(float)); /* each part's dbias and loss */
    if (!partial)
        return NO_MEMORY;
#pragma omp parallel num_threads(threads) reduction(+ : failed)
    {
        unsigned before = flush_subnormal();
        float *x = malloc(size * sizeof(float));
        failed += !x;
#pragma omp for schedule(static)
        for (int64_t job = 0; job < heads * parts; job++) {
            if (!x)
                continue;
            int64_t k = job / parts, part = job % parts;
            float *own = partial + job * (size + 1);
            char *of_head = (char *)z + k * outputs * batch * (low ? 2 : 4);
            for (int64_t n = 0; n < count; n++) {
                int64_t rows = terms[n].last - terms[n].first;
                int64_t each = ((rows + parts - 1) / parts + LANES - 1) / LANES * LANES;
                int64_t first = terms[n].first + part * each, last = first + each;
                last = last < terms[n].last ? last : terms[n].last;
                const float *b = bias ? bias + k * outputs : NULL;
                own[size] += low ? term_block(of_head, batch, outputs, b, terms + n, k, first, last, x, own, 1)
                                 : term_block(of_head, batch, outputs, b, terms + n, k, first, last, x, own, 0);
            }
        }
        free(x);
        restore(before);
    }
    for (int64_t k = 0; k < heads; k++) {
        loss[k] = 0.0f;
        for (int64_t part = 0; part < parts; part++)
            loss[k] += partial[(k * parts + part) * (size + 1) + size];
        for (int64_t c = 0; c < outputs; c++) {
            float sum = 0.0f;
            for (int64_t part = 0; part < parts; part++)
                sum += sum_lanes(partial + (k * parts + part) * (size + 1) + c * LANES);
            dbias[k * outputs + c] = sum;
        }
    }
    free(partial);
    return failed ? NO_MEMORY : OK;
}

/* ---- validation: weighted share of right rows and weighted loss of each head ---- */

INLINE void judge_head(const void *z, int64_t outputs, int64_t batch, const float *bias, const int64_t *target,
                       const double *weight, float *x, double *right, double *loss, int low) {
    float top[LANES], total[LANES], hit[LANES];
    *right = *loss = 0.0;
    for (int64_t at = 0; at < batch; at += LANES) {
        int64_t count = batch - at < LANES ? batch - at : LANES;
        int32_t best[LANES];
        load_logits(z, at, batch, count, outputs, bias, x, low);
        for (int i = 0; i < count; i++)
            hit[i] = x[target[at + i] * LANES + i];
        maxima(x, outputs, top);
        for (int i = 0; i < LANES; i++)
            best[i] = (int32_t)outputs;
        for (int64_t c = outputs - 1; c >= 0; c--) /* of equal logits the first is best */
            for (int i = 0; i < LANES; i++)
                best[i] = x[c * LANES + i] == top[i] ? (int32_t)c : best[i];
        exponentials(x, outputs, top, total);
        for (int i = 0; i < count; i++) {
            *right += best[i] == target[at + i] && total[i] == total[i] ? weight[at + i] : 0.0;
            *loss += (log_positive(total[i]) + top[i] - hit[i]) * weight[at + i];
        }
    }
}

/* right, loss (K) of logits z (K, >= outputs, B); the heads lie `stride` elements apart, bias (K, ...) `bias_stride`.
 * A row with a logit that is NaN is never right. Returns as probe_cross_entropy.
 */
int probe_judge(const void *z, int64_t heads, int64_t stride, int64_t outputs, int64_t batch, const float *bias,
                int64_t bias_stride, const int64_t *target, const double *weight, double *right, double *loss, int low,
                int threads) {
    int failed = 0;
    if (!within(target, batch, outputs))
        return BAD_TARGET;
#pragma omp parallel num_threads(threads) reduction(+ : failed)
    {
        float *x = malloc(outputs * LANES * sizeof(float));
        failed += !x;
#pragma omp for schedule(static)
        for (int64_t k = 0; k < heads; k++) {
            const char *own = (const char *)z + k * stride * (low ? 2 : 4);
            const float *b = bias ? bias + k * bias_stride : NULL;
            if (x && low)
                judge_head(own, outputs, batch, b, target, weight, x, right + k, loss + k, 1);
            else if (x)
                judge_head(own, outputs, batch, b, target, weight, x, right + k, loss + k, 0);
        }
        free(x);
    }
    return failed ? NO_MEMORY : OK;
}

/* ---- hidden layer ---- */

INLINE void hidden_row(void *z, int64_t at, int64_t batch, float bias, const uint8_t *kept, float factor, int low) {
    if (kept)
        for (int64_t i = 0; i < batch; i++) {
            float value = get(z, at + i, low) + bias;
            put(z, at + i, value <= 0.0f || !kept[i] ? 0.0f : value * factor, low);
        }
    else
        for (int64_t i = 0; i < batch; i++) {
            float value = get(z, at + i, low) + bias;
            put(z, at + i, value <= 0.0f ? 0.0f : value, low);
        }
}

/* z (H, B) becomes relu(z + bias), times `factor` where kept (H, B; rows `stride` apart) is not 0, else 0 */
void probe_hidden(void *z, int64_t hidden, int64_t batch, const float *bias, const uint8_t *kept, int64_t stride,
                  float factor, int low, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t h = 0; h < hidden; h++) {
        const uint8_t *mask = kept ? kept + h * stride : NULL;
        if (low)
            hidden_row(z, h * batch, batch, bias[h], mask, factor, 1);
        else
            hidden_row(z, h * batch, batch, bias[h], mask, factor, 0);
    }
}

INLINE float hidden_back_row(void *g, const void *z, int64_t at, int64_t batch, float factor, int low) {
    float sum[LANES] = {0}, rest = 0.0f;
    int64_t i = 0;
    for (; i + LANES <= batch; i += LANES)
        for (int j = 0; j < LANES; j++) {
            float value = get(z, at + i + j, low) <= 0.0f ? 0.0f : get(g, at + i + j, low) * factor;
            put(g, at + i + j, value, low);
            sum[j] += value;
        }
    for (; i < batch; i++) {
        float value = get(z, at + i, low) <= 0.0f ? 0.0f : get(g, at + i, low) * factor;
        put(g, at + i, value, low);
        rest += value;
    }
    return rest + sum_lanes(sum);
}

/* gradient g (H, B) with respect to z after probe_hidden becomes the one before it; dbias (H) is written */
void probe_hidden_back(void *g, const void *z, int64_t hidden, int64_t batch, float factor, float *dbias, int low,
                       int threads) {
#pragma omp parallel num_threads(threads)
    {
        unsigned before = flush_subnormal();
#pragma omp for schedule(static)
        for (int64_t h = 0; h < hidden; h++)
            dbias[h] = low ? hidden_back_row(g, z, h * batch, batch, factor, 1)
                           : hidden_back_row(g, z, h * batch, batch, factor, 0);
        restore(before);
    }
}

/* ---- AdamW ---- */

INLINE void adamw_span(float *restrict w, const void *restrict g, float *restrict m, float *restrict v,
                       uint16_t *restrict copy, int64_t first, int64_t last, float rate, float keep, float fresh1,
                       float beta2, float fresh2, float unbias, float eps, int low, int copies) {
#pragma GCC ivdep
    for (int64_t i = first; i < last; i++) {
        float slope = get(g, i, low);
        float mean = m[i] + fresh1 * (slope - m[i]);
        float square = beta2 * v[i] + fresh2 * slope * slope;
        float weight = w[i] * keep - rate * mean / (sqrtf(square * unbias) + eps);
        m[i] = mean;
        v[i] = square;
        w[i] = weight;
        if (copies)
            put(copy, i, weight, 1);
    }
}

/* One step of (K, n) parameters w, gradients g, moments m and v; `copy`, if any, becomes w in bfloat16.
 * rate, keep (K): learning rate / (1 - beta1^t), 1 - learning rate x decay. unbias: 1 / (1 - beta2^t).
 */
void probe_adamw(float *w, const void *g, float *m, float *v, uint16_t *copy, int64_t heads, int64_t size,
                 const float *rate, const float *keep, double beta1, double beta2, float unbias, float eps, int low,
                 int threads) {
    const int64_t block = 4096;
    const float fresh1 = (float)(1.0 - beta1), fresh2 = (float)(1.0 - beta2), old2 = (float)beta2;
    int64_t blocks = (size + block - 1) / block;
#pragma omp parallel num_threads(threads)
    {
        unsigned before = flush_subnormal();
#pragma omp for schedule(static)
        for (int64_t job = 0; job < heads * blocks; job++) {
            int64_t k = job / blocks, first = k * size + job % blocks * block;
            int64_t last = first + block < (k + 1) * size ? first + block : (k + 1) * size;
            if (low && copy)
                adamw_span(w, g, m, v, copy, first, last, rate[k], keep[k], fresh1, old2, fresh2, unbias, eps, 1, 1);
            else if (low)
                adamw_span(w, g, m, v, NULL, first, last, rate[k], keep[k], fresh1, old2, fresh2, unbias, eps, 1, 0);
            else if (copy)
                adamw_span(w, g, m, v, copy, first, last, rate[k], keep[k], fresh1, old2, fresh2, unbias, eps, 0, 1);
            else
                adamw_span(w, g, m, v, NULL, first, last, rate[k], keep[k], fresh1, old2, fresh2, unbias, eps, 0, 0);
        }
        restore(before);
    }
}
