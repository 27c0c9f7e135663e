// CUDA C as an ordinary C++ compiler sees it: what a kernel's own text needs to be built for the CPU.
//
// A kernel file is compiled behind this header, unchanged. The words of CUDA become macros and small
// functions; whatever makes a thread wait (__syncthreads, a warp operation) calls the runtime in
// cuda_on_cpu.cpp, which runs the threads of one block in turns, each on a stack of its own.
// The tensor cores' mma is done the way the shuffle is: each lane leaves a pointer to its registers
// and one function computes for the warp. Of an asynchronous copy nothing is known between its start
// and the wait for it: its target holds NaN until then.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

struct uint3 { unsigned x, y, z; };
using dim3 = uint3;
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace cuda_on_cpu {

// What the lanes of a warp leave for each other: one pointer a lane, null where no lane takes part.
using Collective = void (*)(void* const lanes[32]);

bool wait_for_block(int line, bool vote = false);  // true if any thread's vote was
void wait_for_warp(int line, const char* name, unsigned mask, void* mine, Collective compute);

// The runtime orders what the lanes leave; ThreadSanitizer need not look at it.
#define CUDA_ON_CPU_UNSEEN __attribute__((noinline, no_sanitize("thread")))

template <class T>
struct Shuffle {
    T value;     // what this lane gives
    int source;  // the lane it takes from
    T result;

    CUDA_ON_CPU_UNSEEN static void compute(void* const lanes[32]) {
        for (int lane = 0; lane < 32; ++lane) {
            auto* mine = static_cast<Shuffle*>(lanes[lane]);
            if (!mine) continue;
            auto* from = static_cast<Shuffle*>(lanes[mine->source]);
            if (from) mine->result = from->value;  // else undefined in CUDA: it stays NaN
        }
    }
};

struct Vote {
    bool predicate;
    unsigned result;

    CUDA_ON_CPU_UNSEEN static void compute(void* const lanes[32]) {
        unsigned ballot = 0;
        for (int lane = 0; lane < 32; ++lane)
            if (lanes[lane] && static_cast<Vote*>(lanes[lane])->predicate) ballot |= 1u << lane;
        for (int lane = 0; lane < 32; ++lane)
            if (lanes[lane]) static_cast<Vote*>(lanes[lane])->result = ballot;
    }
};

// float <-> its bits
inline uint32_t bits_of(float x) { uint32_t bits; std::memcpy(&bits, &x, 4); return bits; }
inline float from_bits(uint32_t bits) { float x; std::memcpy(&x, &bits, 4); return x; }

// A register of a tensor core's factors, and the PAIR factors that it holds. Of one float, in TF32,
// the low 13 bits of the mantissa do not count; round_to_tf32 rounds it (cvt.rna.tf32.f32: to
// nearest, halves away from zero). Two lie side by side in bfloat16, the first in the low half
// (cvt.rn.bf16x2.f32: to nearest, halves to even, one NaN for all).
inline float round_to_tf32(float x) {
    return from_bits((bits_of(x) + (std::isfinite(x) ? 0x1000 : 0)) & 0xffffe000u);
}
inline uint32_t pair_of_bfloat16(float x, float y) {
    uint32_t halves[2];
    for (int p = 0; p < 2; ++p) {
        float value = p ? y : x;
        uint32_t bits = bits_of(value);
        halves[p] = std::isnan(value) ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    }
    return halves[1] << 16 | halves[0];
}
template <int PAIR>
void store_factors(float its, float* to) {
    if (PAIR == 1) to[0] = from_bits(bits_of(its) & 0xffffe000u);
    for (int p = 0; p < 2 && PAIR == 2; ++p)
        to[p] = from_bits(p ? bits_of(its) & 0xffff0000u : bits_of(its) << 16);
}

// mma.sync.m16n8k8 in TF32, m16n8k16 in bfloat16: lane 4g + t has of a the rows g, g + 8, g, g + 8
// of columns t, t, t + 4, t + 4; of b the rows t, t + 4 of column g (with PAIR = 2: columns and rows
// 2t, 2t + 1 for t, 2t + 8, 2t + 9 for t + 4); of d columns 2t, 2t + 1 of row g, then of row g + 8.
// The manufacturer does not tell the order of the additions; here it is that of k.
template <int PAIR>
struct Mma {
    float* d;
    float4 a;
    float2 b;

    CUDA_ON_CPU_UNSEEN static void compute(void* const lanes[32]) {
        constexpr int K = 8 * PAIR;
        float a[16][K], b[8][K];  // b transposed
        bool all_here = true;
        for (int lane = 0; lane < 32; ++lane) all_here &= lanes[lane] != nullptr;
        for (int lane = 0; lane < 32 && all_here; ++lane) {
            auto* its = static_cast<Mma*>(lanes[lane]);
            int g = lane / 4, t = lane % 4 * PAIR;
            store_factors<PAIR>(its->a.x, &a[g][t]), store_factors<PAIR>(its->a.y, &a[g + 8][t]);
            store_factors<PAIR>(its->a.z, &a[g][t + K / 2]);
            store_factors<PAIR>(its->a.w, &a[g + 8][t + K / 2]);
            store_factors<PAIR>(its->b.x, &b[g][t]);
            store_factors<PAIR>(its->b.y, &b[g][t + K / 2]);
        }
        for (int lane = 0; lane < 32; ++lane)
            for (int e = 0; e < 4 && lanes[lane]; ++e) {
                float& d = static_cast<Mma*>(lanes[lane])->d[e];
                int row = lane / 4 + e / 2 * 8, column = lane % 4 * 2 + e % 2;
                if (!all_here) d = NAN;  // undefined in CUDA
                for (int k = 0; k < K && all_here; ++k) d += a[row][k] * b[column][k];
            }
    }
};

inline int lane_index() {
    return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32;
}

template <class T>
T shuffle(int line, const char* name, unsigned mask, T value, int source) {
    Shuffle<T> mine{value, source, value};
    std::memset(&mine.result, 0xFF, sizeof(T));
    wait_for_warp(line, name, mask, &mine, Shuffle<T>::compute);
    return mine.result;
}

// The four shuffles differ in the lane they take from; width cuts the warp into segments.
template <class T>
T shfl(int line, unsigned mask, T value, int source, int width = 32) {
    int first = lane_index() & ~(width - 1);
    return shuffle(line, "__shfl_sync", mask, value, first | (source & (width - 1)));
}
template <class T>
T shfl_up(int line, unsigned mask, T value, unsigned delta, int width = 32) {
    int lane = lane_index(), first = lane & ~(width - 1), source = lane - int(delta);
    return shuffle(line, "__shfl_up_sync", mask, value, source < first ? lane : source);
}
template <class T>
T shfl_down(int line, unsigned mask, T value, unsigned delta, int width = 32) {
    int lane = lane_index(), last = lane | (width - 1), source = lane + int(delta);
    return shuffle(line, "__shfl_down_sync", mask, value, source > last ? lane : source);
}
template <class T>
T shfl_xor(int line, unsigned mask, T value, int bits, int width = 32) {
    int lane = lane_index(), last = lane | (width - 1), source = (lane ^ bits) & 31;
    return shuffle(line, "__shfl_xor_sync", mask, value, source > last ? lane : source);
}
inline unsigned ballot(int line, const char* name, unsigned mask, bool predicate) {
    Vote mine{predicate, 0};
    wait_for_warp(line, name, mask, &mine, Vote::compute);
    return mine.result;
}
inline void syncwarp(int line, unsigned mask = ~0u) {
    wait_for_warp(line, "__syncwarp", mask, nullptr, nullptr);
}

template <int PAIR>
void mma(int line, float (&d)[4], float4 a, float2 b) {
    Mma<PAIR> mine{d, a, b};
    wait_for_warp(line, "mma", ~0u, &mine, Mma<PAIR>::compute);
}

// A copy that is on its way (cp.async): its target, and the bytes that will be there.
struct AsyncCopy {
    float* to;
    float value[4];
    int count;
};
extern unsigned char* dynamic_shared;  // of the block that runs now
void start_copy(const AsyncCopy& copy);
bool next_copy(AsyncCopy& copy);  // of this thread, the oldest first; false when none is left

// The manufacturer promises nothing of the target until the copy is waited for. So it is made NaN at
// once, which shows a copy that starts while others still read, and written only when its thread
// waits, which shows a wait that is missing or comes after the barrier.
template <class T>
void copy_async(T* to, const T* from, bool inside = true) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 16, "cp.async copies 4 or 16 bytes");
    AsyncCopy copy{(float*)to, {}, int(sizeof(T) / 4)};
    T poison, value = inside ? *from : T{};
    std::memset((void*)&poison, 0xff, sizeof(T));
    std::memcpy(copy.value, &value, sizeof(T));
    *to = poison;
    start_copy(copy);
}
inline void wait_for_copies() {
    for (AsyncCopy copy; next_copy(copy);)
        for (int e = 0; e < copy.count; ++e) copy.to[e] = copy.value[e];
}

// A kernel as the runtime calls it: one pointer an argument, as in cudaLaunchKernel.
struct Kernel {
    const char* name;
    void (*call)(void** arguments);
};
template <class... A, size_t... i>
inline void unpack(void (*kernel)(A...), void** arguments, std::index_sequence<i...>) {
    kernel(*static_cast<std::decay_t<A>*>(arguments[i])...);
}
template <class... A>
inline void call(void (*kernel)(A...), void** arguments) {
    unpack(kernel, arguments, std::index_sequence_for<A...>());
}

}  // namespace cuda_on_cpu

#define __syncthreads() cuda_on_cpu::wait_for_block(__LINE__)
#define __syncthreads_or(p) int(cuda_on_cpu::wait_for_block(__LINE__, p))
#define __syncwarp(...) cuda_on_cpu::syncwarp(__LINE__ __VA_OPT__(, ) __VA_ARGS__)
#define __shfl_sync(...) cuda_on_cpu::shfl(__LINE__, __VA_ARGS__)
#define __shfl_up_sync(...) cuda_on_cpu::shfl_up(__LINE__, __VA_ARGS__)
#define __shfl_down_sync(...) cuda_on_cpu::shfl_down(__LINE__, __VA_ARGS__)
#define __shfl_xor_sync(...) cuda_on_cpu::shfl_xor(__LINE__, __VA_ARGS__)
#define __ballot_sync(mask, p) cuda_on_cpu::ballot(__LINE__, "__ballot_sync", mask, p)
#define __any_sync(mask, p) (cuda_on_cpu::ballot(__LINE__, "__any_sync", mask, p) != 0)
#define __all_sync(mask, p) (cuda_on_cpu::ballot(__LINE__, "__all_sync", mask, !(p)) == 0)

#define CUDA_ON_CPU  // says so to tensor_core.cuh, whose instructions these are
using cuda_on_cpu::copy_async;
using cuda_on_cpu::pair_of_bfloat16;
using cuda_on_cpu::round_to_tf32;
using cuda_on_cpu::wait_for_copies;
inline uint32_t __float_as_uint(float x) { return cuda_on_cpu::bits_of(x); }
inline float __uint_as_float(uint32_t bits) { return cuda_on_cpu::from_bits(bits); }
#define mma(...) cuda_on_cpu::mma<PAIR>(__LINE__, __VA_ARGS__)

template <class T>
inline T __ldg(const T* p) { return *p; }
template <class T, class U>
inline T atomicAdd(T* p, U value) {
    static_assert(std::is_integral_v<T>, "no float atomics: results must repeat bit for bit");
    return __atomic_fetch_add(p, T(value), __ATOMIC_RELAXED);
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(unsigned bits) { return bits ? __builtin_clz(bits) : 32; }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float a) { return 1 / std::sqrt(a); }
inline double rsqrt(double a) { return 1 / std::sqrt(a); }

// CUDA's min and max of numbers of any two types; of floats they let NaN lose, as fmin and fmax do.
template <class A, class B>
inline std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) return std::fmin(T(a), T(b));
    else return T(a) < T(b) ? T(a) : T(b);
}
template <class A, class B>
inline std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) return std::fmax(T(a), T(b));
    else return T(a) > T(b) ? T(a) : T(b);
}
using std::isinf;
using std::isnan;

// __shared__: one static for the block that runs now, in a section that is refilled before each
// block. Under ThreadSanitizer each array has pages of its own, so that they can be made new.
#if defined(__APPLE__)
#define CUDA_SHARED_SECTION "__DATA,cuda_shared"
#elif defined(_WIN32)
#define CUDA_SHARED_SECTION ".cudash$m"
#else
#define CUDA_SHARED_SECTION "cuda_shared"
#endif
#ifdef CUDA_ON_CPU_THREAD
#define __shared__ static __attribute__((section(CUDA_SHARED_SECTION), aligned(4096)))
#else
#define __shared__ static __attribute__((section(CUDA_SHARED_SECTION)))
#endif
#define __global__
#define __device__
#define __host__
#define __constant__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
