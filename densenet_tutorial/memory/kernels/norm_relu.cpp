// Batch norm by known statistics and ReLU, in one pass over memory, and their backward pass in two.
//
// A tensor is a matrix: a row for each pixel of each image, `stride` floats after the one before it,
// with the channels side by side (channels_last). Vectors have one value per channel.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace {

constexpr long kChannels = 32;  // whose sums are kept in registers at a time
constexpr long kRows = 32;      // that are added up in float; the rest is in double

// norm(x) = scale * x + shift
struct Norm {
  std::vector<float> scale, shift, invstd;

  Norm(long channels, const float* mean, const float* var, const float* weight, const float* bias,
       double eps)
      : scale(channels), shift(channels), invstd(channels) {
    for (long c = 0; c < channels; c++) {
      invstd[c] = static_cast<float>(1 / std::sqrt(var[c] + eps));
      scale[c] = invstd[c] * weight[c];
      shift[c] = bias[c] - mean[c] * scale[c];
    }
  }
};

// Sums over rows, of each channel: of ReLU's gradient, and of its product with x - mean.
struct Sums {
  std::vector<double> gradient, product;

  explicit Sums(long channels) : gradient(channels), product(channels) {}

  void operator+=(const Sums& other) {
    for (size_t c = 0; c < gradient.size(); c++) {
      gradient[c] += other.gradient[c];
      product[c] += other.product[c];
    }
  }
};

// With batch statistics, the gradient of x is scale * ReLU's gradient, and this correction:
// factor * (x - mean) + offset.
struct Correction {
  std::vector<float> factor, offset;

  Correction(long rows, long channels, const Norm& norm, const Sums& sums, float* grad_weight,
             float* grad_bias)
      : factor(channels), offset(channels) {
    for (long c = 0; c < channels; c++) {
      const double sum = sums.gradient[c], product = sums.product[c], invstd = norm.invstd[c];
      grad_bias[c] = static_cast<float>(sum);
      grad_weight[c] = static_cast<float>(product * invstd);
      factor[c] = static_cast<float>(-norm.scale[c] * product * invstd * invstd / rows);
      offset[c] = static_cast<float>(-norm.scale[c] * sum / rows);
    }
  }
};

// Adds the sums over a few rows; adds scale * ReLU's gradient to `to` unless it is null.
template <bool kAdd>
inline __attribute__((always_inline)) void add_rows(long rows, long width, const float* x,
                                                    long x_stride, const float* grad,
                                                    long grad_stride, const float* scale,
                                                    const float* shift, const float* mean,
                                                    double* sums, double* products, float* to,
                                                    long to_stride) {
  float sum[kChannels] = {}, product[kChannels] = {};
  for (long r = 0; r < rows; r++) {
#pragma omp simd
    for (long c = 0; c < width; c++) {
      const float g = x[c] * scale[c] + shift[c] <= 0 ? 0 : grad[c];
      sum[c] += g;
      product[c] += g * (x[c] - mean[c]);
      if (kAdd) to[c] += scale[c] * g;
    }
    x += x_stride;
    grad += grad_stride;
    if (kAdd) to += to_stride;
  }
  for (long c = 0; c < width; c++) {
    sums[c] += sum[c];
    products[c] += product[c];
  }
}

template <bool kAdd>
Sums add_all_rows(int threads, long rows, long channels, const float* x, long x_stride,
                  const float* mean, const Norm& norm, const float* grad, float* to,
                  long to_stride) {
  std::vector<Sums> parts(threads, Sums(channels));
#pragma omp parallel num_threads(threads)
  {
    Sums& own = parts[omp_get_thread_num()];
#pragma omp for schedule(static)
    for (long first = 0; first < rows; first += kRows) {
      const long n = std::min(kRows, rows - first);
      for (long c = 0; c < channels; c += kChannels) {
        auto add = [&](long width) __attribute__((always_inline)) {
          add_rows<kAdd>(n, width, x + first * x_stride + c, x_stride,
                         grad + first * channels + c, channels, &norm.scale[c], &norm.shift[c],
                         mean + c, &own.gradient[c], &own.product[c], to + first * to_stride + c,
                         to_stride);
        };
        if (c + kChannels <= channels) {
          add(kChannels);  // a constant, for the compiler
        } else {
          add(channels - c);
        }
      }
    }
  }
  for (int i = 1; i < threads; i++) parts[0] += parts[i];
  return parts[0];
}

}  // namespace

// y = relu(norm(x)); the rows of y are `channels` apart.
extern "C" void norm_relu(int threads, long rows, long channels, const float* x, long x_stride,
                          const float* mean, const float* var, const float* weight,
                          const float* bias, double eps, float* y) {
  const Norm norm(channels, mean, var, weight, bias, eps);
  const float* scale = norm.scale.data();
  const float* shift = norm.shift.data();
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long r = 0; r < rows; r++) {
    const float* from = x + r * x_stride;
    float* to = y + r * channels;
#pragma omp simd
    for (long c = 0; c < channels; c++) {
      const float value = from[c] * scale[c] + shift[c];
      to[c] = value < 0 ? 0 : value;  // NaN stays
    }
  }
}

// The gradients of x, weight and bias, where `mean` and `var` are those of x. `grad` is that of y,
// whose rows are `channels` apart; it is overwritten with the gradient of x.
extern "C" void norm_relu_backward(int threads, long rows, long channels, const float* x,
                                   long x_stride, const float* mean, const float* var,
                                   const float* weight, const float* bias, double eps, float* grad,
                                   float* grad_weight, float* grad_bias) {
  const Norm norm(channels, mean, var, weight, bias, eps);
  const Sums sums = add_all_rows<false>(threads, rows, channels, x, x_stride, mean, norm, grad,
                                        nullptr, 0);
  const Correction correction(rows, channels, norm, sums, grad_weight, grad_bias);
  const float* scale = norm.scale.data();
  const float* shift = norm.shift.data();
  const float* factor = correction.factor.data();
  const float* offset = correction.offset.data();
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long r = 0; r < rows; r++) {
    const float* from = x + r * x_stride;
    float* to = grad + r * channels;
#pragma omp simd
    for (long c = 0; c < channels; c++) {
      const float g = from[c] * scale[c] + shift[c] <= 0 ? 0 : to[c];
      to[c] = scale[c] * g + (factor[c] * (from[c] - mean[c]) + offset[c]);
    }
  }
}

// The same in one pass, without the correction, which is added to `factor` and `offset`. What is
// left of the gradient of x is added to `to`.
extern "C" void norm_relu_backward_add(int threads, long rows, long channels, const float* x,
                                       long x_stride, const float* mean, const float* var,
                                       const float* weight, const float* bias, double eps,
                                       const float* grad, float* grad_weight, float* grad_bias,
                                       float* to, long to_stride, float* factor, float* offset) {
  const Norm norm(channels, mean, var, weight, bias, eps);
  const Sums sums = add_all_rows<true>(threads, rows, channels, x, x_stride, mean, norm, grad, to,
                                       to_stride);
  const Correction correction(rows, channels, norm, sums, grad_weight, grad_bias);
  for (long c = 0; c < channels; c++) {
    factor[c] += correction.factor[c];
    offset[c] += correction.offset[c];
  }
}

// corrected = uncorrected + factor * (x - mean) + offset; the rows of `corrected` are `channels`
// apart.
extern "C" void correct(int threads, long rows, long channels, const float* x, long x_stride,
                        const float* mean, const float* uncorrected, long stride,
                        const float* factor, const float* offset, float* corrected) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long r = 0; r < rows; r++) {
    const float* from = x + r * x_stride;
    const float* add = uncorrected + r * stride;
    float* to = corrected + r * channels;
#pragma omp simd
    for (long c = 0; c < channels; c++) {
      to[c] = add[c] + (factor[c] * (from[c] - mean[c]) + offset[c]);
    }
  }
}
