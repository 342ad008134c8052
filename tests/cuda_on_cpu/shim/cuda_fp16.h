// IEEE half precision in software, round to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

struct __half {
  uint16_t bits;
};

inline __half __ushort_as_half(unsigned short bits) { return {bits}; }

inline float __half2float(__half h) {
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000) << 16;
  const uint32_t exponent = h.bits >> 10 & 31;
  const uint32_t fraction = h.bits & 0x3ff;
  if (exponent == 0) {  // zero or subnormal: fraction * 2^-24
    const float value = static_cast<float>(fraction) / 16777216.0f;
    return sign ? -value : value;
  }
  const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
  const uint32_t bits = sign | wide << 23 | fraction << 13;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline __half __float2half_rn(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) {
    return {static_cast<uint16_t>(sign | 0x7fff)};
  }
  if (bits >= 0x477ff000) {
    return {static_cast<uint16_t>(sign | 0x7c00)};
  }
  const int exponent = static_cast<int>(bits >> 23) - 127;
  if (exponent < -25) {
    return {sign};
  }
  const uint32_t fraction = (bits & 0x7fffff) | 0x800000;
  const int shift = exponent < -14 ? -exponent - 1 : 13;
  uint32_t rounded = fraction >> shift;
  const uint32_t rest = fraction & ((1u << shift) - 1);
  const uint32_t tie = 1u << (shift - 1);
  if (rest > tie || (rest == tie && (rounded & 1))) ++rounded;
  // A normal number brings its implicit one along, which counts as exponent 1.
  if (exponent >= -14) rounded += static_cast<uint32_t>(exponent + 14) << 10;
  return {static_cast<uint16_t>(sign | rounded)};
}
