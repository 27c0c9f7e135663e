// Adadelta on the GPU; the numpy pair is in optim.py. real is float or double.

// computes  G <- rho G + (1 - rho) g^2
//           s  = -sqrt(S + eps) / sqrt(G + eps) g
//           S <- rho S + (1 - rho) s^2
//           w <- w + lr s                                  with G = avg_g2, S = avg_s2
// threads   thread i owns w[i], avg_g2[i] and avg_s2[i]
// memory    reads 4 elements, writes 3 per weight: all in one pass, where the formulas as separate
//           array operations would move about 20
// work      12 FLOP and a square root per weight
// no race   every element has one owner, who reads it before writing it
extern "C" __global__ void adadelta_update(real* __restrict__ w, const real* __restrict__ g,
                                           real* __restrict__ avg_g2, real* __restrict__ avg_s2,
                                           real lr, real rho, real eps, long long n)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    real new_g2 = rho * avg_g2[i] + (1 - rho) * g[i] * g[i];
    real step = -sqrt((avg_s2[i] + eps) / (new_g2 + eps)) * g[i];
    avg_g2[i] = new_g2;
    avg_s2[i] = rho * avg_s2[i] + (1 - rho) * step * step;
    w[i] += lr * step;
}
