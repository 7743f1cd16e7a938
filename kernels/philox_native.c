/* Philox 4x32-10 in whole numbers: the bulk generator of philox.py, number for number. Plain C that gcc vectorises. */
#include <stdint.h>
#include <string.h>

#define LANES 32 /* blocks at once */
#define LOW 0xffffffffu

/* the first `count` 16-bit numbers of one image: numbers 8 b .. 8 b + 7 are the halves, low first, of the words of block b */
void philox_bits16(uint64_t key, uint64_t name, uint32_t stream, int64_t count, uint16_t *out) {
    for (int64_t start = 0; start * 8 < count; start += LANES) {
        /* words in 64 bits: what lies above the lower half is left standing until the next product needs it gone */
        uint64_t c0[LANES], c1[LANES], c2[LANES], c3[LANES];
        for (int i = 0; i < LANES; i++) {
            c0[i] = (uint64_t)(start + i);
            c1[i] = stream;
            c2[i] = name & LOW;
            c3[i] = name >> 32;
        }
        uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
        for (int round = 0; round < 10; round++) {
            for (int i = 0; i < LANES; i++) {
                uint64_t p0 = (c0[i] & LOW) * 0xd2511f53u, p1 = (c2[i] & LOW) * 0xcd9e8d57u;
                c0[i] = (p1 >> 32) ^ c1[i] ^ k0;
                c1[i] = p1;
                c2[i] = (p0 >> 32) ^ c3[i] ^ k1;
                c3[i] = p0;
            }
            k0 += 0x9e3779b9u;
            k1 += 0xbb67ae85u;
        }
        uint16_t part[8 * LANES];
        for (int i = 0; i < LANES; i++) {
            const uint32_t words[4] = {(uint32_t)c0[i], (uint32_t)c1[i], (uint32_t)c2[i], (uint32_t)c3[i]};
            for (int lane = 0; lane < 4; lane++) {
                part[8 * i + 2 * lane] = (uint16_t)words[lane];
                part[8 * i + 2 * lane + 1] = (uint16_t)(words[lane] >> 16);
            }
        }
        int64_t left = count - 8 * start;
        memcpy(out + 8 * start, part, sizeof(uint16_t) * (size_t)(left < 8 * LANES ? left : 8 * LANES));
    }
}
