#include "shim/block.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size)
#define ASAN_UNPOISON_MEMORY_REGION(address, size)
#endif

#if defined(__x86_64__)
// Saves the registers that a call preserves on the stack that is left and
// restores them from the one that is entered; swapcontext would also make a
// system call, and a warp of shuffles is many switches.
using Context = void*;
extern "C" void shim_switch(void** leave, void* enter);
asm(R"(
.text
.globl shim_switch
.type shim_switch, @function
shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size shim_switch, .-shim_switch
.section .note.GNU-stack,"",@progbits
.text
)");
static void switch_to(Context& leave, Context& enter) {
  shim_switch(&leave, enter);
}
static void make_context(Context& context, char* stack, size_t bytes,
                         void (*entry)()) {
  // Top: what `entry` would return to (it never does), its address, and the
  // six registers.
  auto** top = reinterpret_cast<void**>(stack + bytes);
  top[-2] = reinterpret_cast<void*>(entry);
  context = top - 8;
}
#else
#include <ucontext.h>
using Context = ucontext_t;
static void switch_to(Context& leave, Context& enter) {
  swapcontext(&leave, &enter);
}
static void make_context(Context& context, char* stack, size_t bytes,
                         void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = bytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
#endif

namespace shim {
namespace {

constexpr size_t kStackBytes = 256 * 1024;

enum class State { kReady, kAtBarrier, kInWarp, kDone };

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

struct Fiber {
  State state;
  Coordinates where;
  Context context;
  void* fake_stack;
  std::vector<Copy> copies;
};

struct Warp {
  unsigned arrived = 0, mask = 0;
  WarpOp op = WarpOp::kSync;
  uint32_t given[32], taken[32];
};

std::vector<Fiber> fibers;
std::vector<Warp> warps;
Fiber* running = nullptr;
const std::function<void()>* body = nullptr;
unsigned char* shared = nullptr;
char* stacks = nullptr;
size_t num_stacks = 0;
std::vector<std::pair<int, int>> gaps;  // offsets and bytes
Context scheduler;
void* scheduler_fake_stack = nullptr;
const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;

size_t index_of(const Fiber& fiber) {
  return static_cast<size_t>(&fiber - fibers.data());
}
char* stack_of(const Fiber& fiber) {
  return stacks + index_of(fiber) * kStackBytes;
}

void start_switch([[maybe_unused]] void** fake_stack,
                  [[maybe_unused]] const void* stack,
                  [[maybe_unused]] size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(fake_stack, stack, bytes);
#endif
}
void finish_switch([[maybe_unused]] void* fake_stack,
                   [[maybe_unused]] const void** stack,
                   [[maybe_unused]] size_t* bytes) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_stack, stack, bytes);
#endif
}

// Back to the scheduler, until it resumes this fiber.
void pause(State state) {
  Fiber* self = running;
  self->state = state;
  start_switch(state == State::kDone ? nullptr : &self->fake_stack,
               scheduler_stack, scheduler_stack_bytes);
  switch_to(self->context, scheduler);
  finish_switch(self->fake_stack, &scheduler_stack, &scheduler_stack_bytes);
}

void resume(Fiber& fiber) {
  running = &fiber;
  start_switch(&scheduler_fake_stack, stack_of(fiber), kStackBytes);
  switch_to(scheduler, fiber.context);
  finish_switch(scheduler_fake_stack, nullptr, nullptr);
}

void fiber_main() {
  finish_switch(nullptr, &scheduler_stack, &scheduler_stack_bytes);
  (*body)();
  if (!running->copies.empty()) fail("thread ends with copies under way");
  pause(State::kDone);
}

void prepare(int threads, const Coordinates& block) {
  if (static_cast<size_t>(threads) > num_stacks) {
    if (stacks != nullptr) munmap(stacks, num_stacks * kStackBytes);
    num_stacks = static_cast<size_t>(threads);
    void* memory =
        mmap(nullptr, num_stacks * kStackBytes, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("no memory for the stacks");
    stacks = static_cast<char*>(memory);
  }
  fibers.resize(static_cast<size_t>(threads));
  warps.assign(static_cast<size_t>(threads) / 32, Warp());
  for (Fiber& fiber : fibers) {
    fiber.state = State::kReady;
    fiber.where = block;
    fiber.where.thread = {static_cast<unsigned>(index_of(fiber)), 0, 0};
    fiber.fake_stack = nullptr;
    make_context(fiber.context, stack_of(fiber), kStackBytes, fiber_main);
  }
}

std::vector<size_t> order_of(size_t count, std::mt19937& random) {
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t{0});
  if (options().order == Order::kDescending) {
    std::reverse(order.begin(), order.end());
  } else if (options().order == Order::kShuffled) {
    std::shuffle(order.begin(), order.end(), random);
  }
  return order;
}

[[noreturn]] void fail_stuck() {
  constexpr const char* names[] = {"ready", "at __syncthreads",
                                   "in a warp operation", "returned"};
  int count[4] = {};
  for (const Fiber& fiber : fibers) ++count[static_cast<int>(fiber.state)];
  for (const Fiber& fiber : fibers) {
    std::fprintf(stderr, "  thread %zu %s\n", index_of(fiber),
                 names[static_cast<int>(fiber.state)]);
  }
  running = nullptr;
  fail(
      "divergence: %d threads at __syncthreads, %d in a warp operation, "
      "%d returned",
      count[1], count[2], count[3]);
}

// Runs a warp until all its threads are at the block's barrier or done.
void run_warp(size_t warp, std::mt19937& random) {
  for (bool moved = true; moved;) {
    moved = false;
    for (const size_t lane : order_of(32, random)) {
      Fiber& fiber = fibers[warp * 32 + lane];
      if (fiber.state != State::kReady) continue;
      resume(fiber);
      moved = true;
    }
  }
}

void run_block(std::mt19937& random) {
  const auto all = [](State state) {
    return std::all_of(fibers.begin(), fibers.end(), [&](const Fiber& fiber) {
      return fiber.state == state;
    });
  };
  for (;;) {
    for (const size_t warp : order_of(warps.size(), random)) {
      run_warp(warp, random);
    }
    if (all(State::kDone)) return;
    if (!all(State::kAtBarrier)) fail_stuck();
    for (Fiber& fiber : fibers) fiber.state = State::kReady;
  }
}

}  // namespace

Options& options() {
  static Options instance;
  return instance;
}

void poison(void* begin, int64_t bytes) {
  auto* bytes_of = static_cast<unsigned char*>(begin);
  for (int64_t i = 0; i < bytes; ++i) bytes_of[i] = kPoison[i % 2];
}

void fail(const char* format, ...) {
  std::fflush(stdout);
  std::fprintf(stderr, "cuda shim");
  if (running != nullptr) {
    std::fprintf(stderr, ", block %u thread %u", running->where.block.x,
                 running->where.thread.x);
  }
  std::fprintf(stderr, ": ");
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fprintf(stderr, "\n");
  std::fflush(stderr);
  std::_Exit(3);
}

const Coordinates& coordinates() { return running->where; }
unsigned char* dynamic_shared() { return shared; }
void block_barrier() { pause(State::kAtBarrier); }

const uint32_t* warp_exchange(unsigned mask, WarpOp op, uint32_t value) {
  const unsigned thread = running->where.thread.x;
  const unsigned lane = thread % 32;
  Warp& warp = warps[thread / 32];
  if (!(mask >> lane & 1)) fail("lane is not in its own mask %08x", mask);
  if (warp.arrived == 0) {
    warp.mask = mask;
    warp.op = op;
  } else if (warp.mask != mask || warp.op != op) {
    fail("divergence: lanes of a warp in different operations");
  }
  warp.given[lane] = value;
  warp.arrived |= 1u << lane;
  if (warp.arrived != mask) {
    pause(State::kInWarp);
  } else {
    std::memcpy(warp.taken, warp.given, sizeof(warp.given));
    warp.arrived = 0;
    for (unsigned other = 0; other < 32; ++other) {
      Fiber& fiber = fibers[thread - lane + other];
      if (mask >> other & 1) fiber.state = State::kReady;
    }
  }
  return warp.taken;
}

void copy_async(void* to, const void* from, int bytes) {
  const auto misaligned = [&](const void* address) {
    return reinterpret_cast<uintptr_t>(address) %
               static_cast<uintptr_t>(bytes) !=
           0;
  };
  if (misaligned(to) || misaligned(from)) {
    fail("cp.async of %d bytes from %p to %p is not aligned", bytes, from, to);
  }
  poison(to, bytes);
  running->copies.push_back({to, from, bytes});
}

void copy_async_wait() {
  for (const Copy& copy : running->copies) {
    std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
  }
  running->copies.clear();
}

void note_gap(int offset, int bytes) {
  // Arrays are laid out from the front: an offset before the last gap belongs
  // to another layout.
  if (!gaps.empty() && offset <= gaps.back().first) gaps.clear();
  gaps.emplace_back(offset, bytes);
}

void run_grid(int64_t blocks, int threads, int shared_bytes,
              const std::function<void()>& kernel) {
  if (threads < 32 || threads > 1024 || threads % 32 != 0) {
    fail("%d threads in a block: want whole warps, at most 1024", threads);
  }
  if (shared_bytes > options().shared_limit) {
    fail("%d bytes of shared memory, the limit is %d", shared_bytes,
         options().shared_limit);
  }
  if (blocks < 1) fail("empty grid");
  std::mt19937 random(0);
  body = &kernel;
  for (const size_t block : order_of(static_cast<size_t>(blocks), random)) {
    Coordinates where;
    where.block.x = static_cast<unsigned>(block);
    where.grid_size = {static_cast<unsigned>(blocks), 1, 1};
    where.block_size = {static_cast<unsigned>(threads), 1, 1};
    shared = static_cast<unsigned char*>(
        std::malloc(static_cast<size_t>(shared_bytes)));
    poison(shared, shared_bytes);
    for (const auto& gap : gaps) {
      if (gap.first + gap.second > shared_bytes) continue;
      ASAN_POISON_MEMORY_REGION(shared + gap.first,
                                static_cast<size_t>(gap.second));
    }
    prepare(threads, where);
    run_block(random);
    running = nullptr;
    ASAN_UNPOISON_MEMORY_REGION(shared, static_cast<size_t>(shared_bytes));
    std::free(shared);
  }
}

}  // namespace shim
