// A thread block on the CPU: every thread is a fiber, and one fiber runs at a
// time until it reaches a barrier or a warp operation; a warp runs until it
// waits for the block. That is the largest skew between threads that barriers
// allow, so a missing barrier changes results, at the latest when the fibers
// run in another order.
#pragma once

#include <cstdint>
#include <functional>

namespace shim {

struct Dim {
  unsigned x = 0, y = 0, z = 0;
};
struct Coordinates {
  Dim thread, block, block_size, grid_size;
};

enum class Order { kAscending, kDescending, kShuffled };

struct Options {
  Order order = Order::kAscending;  // of the threads, and of the blocks
  int shared_limit = 227 * 1024;    // bytes a block may ask for
};
Options& options();

// What fresh memory holds: NaN in all three types, far out of any range as an
// index.
constexpr unsigned char kPoison[2] = {0xff, 0x7f};
void poison(void* begin, int64_t bytes);

// Prints the message with the block and thread it concerns; ends the program
// with status 3.
[[noreturn]] void fail(const char* format, ...)
    __attribute__((format(printf, 1, 2)));

const Coordinates& coordinates();
unsigned char* dynamic_shared();
void block_barrier();

// Waits until all lanes of `mask` ask for the same operation; returns what
// each gave, by lane.
enum class WarpOp { kSync, kShuffle };
const uint32_t* warp_exchange(unsigned mask, WarpOp op, uint32_t value);

// The target is lost at once and holds the data only after this thread waits.
void copy_async(void* shared, const void* global, int bytes);
void copy_async_wait();

// No access to these bytes of the shared memory of the launches to come (seen
// by AddressSanitizer), until memory is laid out anew, from offset 0 on.
void note_gap(int offset, int bytes);

void run_grid(int64_t blocks, int threads, int shared_bytes,
              const std::function<void()>& kernel);

}  // namespace shim
