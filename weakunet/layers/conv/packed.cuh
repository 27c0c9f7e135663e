// The numbers in an array of feature maps: `stored` is real in a plain array, and tf32 or bfloat16
// in a packed one (packed.py has the picture). These two are read as floats, and round what is
// written to them.
#ifndef INNER  // not included yet

#ifndef CUDA_ON_CPU  // the tests, which run these files on a CPU, bring their own of these

// x rounded to TF32, 10 bits of mantissa: to the nearest, halves away from zero
static __device__ __forceinline__ float round_to_tf32(float x)
{
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return __uint_as_float(bits);
}

// x and y rounded to bfloat16, 7 bits of mantissa, halves to even; x is in the lower 16 bits
static __device__ __forceinline__ unsigned pair_of_bfloat16(float x, float y)
{
    unsigned bits;
    asm("cvt.rn.bf16x2.f32 %0, %2, %1;" : "=r"(bits) : "f"(x), "f"(y));
    return bits;
}

#endif

struct tf32 {
    float value;
    tf32() = default;
    __device__ tf32(float x) : value(round_to_tf32(x)) {}
    __device__ operator float() const { return value; }
};

struct bfloat16 {  // the upper half of a float
    unsigned short bits;
    bfloat16() = default;
    __device__ bfloat16(float x) : bits((unsigned short)pair_of_bfloat16(x, 0)) {}
    __device__ operator float() const { return __uint_as_float((unsigned)bits << 16); }
};

// How many channels of a voxel lie side by side: 32 bytes of them in a packed array.
template <class T>
struct SideBySide {
    static constexpr int COUNT = 1;
};
template <>
struct SideBySide<tf32> {
    static constexpr int COUNT = 8;
};
template <>
struct SideBySide<bfloat16> {
    static constexpr int COUNT = 16;
};
#define INNER SideBySide<stored>::COUNT

#endif
