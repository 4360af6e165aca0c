// Runs CUDA kernel bodies on the host: a fiber for each thread, blocks one after another.
//
// A test tool, not an emulator of a GPU: it supplies the names that our kernels use, gives barriers
// and warp exchanges their meaning, fills shared memory with NaN before each block, and resumes
// threads in an order shuffled by PAMA_EMULATE_SEED, in which some warps get as far ahead of the
// others as barriers allow, so that a missing barrier shows. PAMA_EMULATE_WITHOUT=FILE:LINE
// deletes the barrier of that line, to prove that it shows.
#pragma once

#include <ucontext.h>

#include <csetjmp>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <source_location>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

namespace pama::emulator {

struct Index {
  unsigned x = 0;
};

// Of those threads that are not done.
struct Barrier {
  int alive = 0, arrived = 0;
  uint64_t generation = 0;
};

struct Fiber {
  jmp_buf point;
  std::unique_ptr<char[]> stack;
  bool started = false, done = false;
};

struct Warp {
  Barrier barrier;
  uint64_t slot[32];
};

inline constexpr size_t kStack = 128 * 1024;

struct Machine {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Barrier block;
  int current = 0;
  uint64_t progress = 0;  // counts released barriers and finished threads
  jmp_buf scheduler;
  std::function<void()> body;
  std::vector<double> shared;                  // dynamic
  std::vector<std::span<char>> shared_arrays;  // static
  std::string deleted;                         // where a barrier is deleted
  Index block_index, block_size, grid_size;
};

inline Machine machine;

inline Warp& warp() { return machine.warps[machine.current / 32]; }
inline int lane() { return machine.current % 32; }

inline void yield() {
  Fiber& fiber = machine.fibers[machine.current];
  if (_setjmp(fiber.point) == 0) _longjmp(machine.scheduler, 1);
}

// Lets all go on if they have arrived.
inline void release(Barrier& barrier) {
  if (barrier.arrived < barrier.alive) return;
  barrier.arrived = 0;
  ++barrier.generation;
  ++machine.progress;
}

inline void wait(Barrier& barrier) {
  const uint64_t generation = barrier.generation;
  ++barrier.arrived;
  release(barrier);
  while (barrier.generation == generation) yield();
}

// A fiber's life: run the kernel, then leave the barriers, which no longer wait for it.
inline void live() {
  machine.body();
  machine.fibers[machine.current].done = true;
  ++machine.progress;
  for (Barrier* barrier : {&warp().barrier, &machine.block}) {
    --barrier->alive;
    release(*barrier);
  }
  _longjmp(machine.scheduler, 1);
}

inline void resume(int thread) {
  machine.current = thread;
  Fiber& fiber = machine.fibers[thread];
  if (_setjmp(machine.scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.point, 1);
  fiber.started = true;
  ucontext_t entry;
  getcontext(&entry);
  entry.uc_stack.ss_sp = fiber.stack.get();
  entry.uc_stack.ss_size = kStack;
  entry.uc_link = nullptr;
  makecontext(&entry, live, 0);
  setcontext(&entry);
}

// Resumes each thread of a warp once, in a random order; whether that let any go on from a barrier.
inline bool take_turn(std::vector<int>& threads, std::mt19937& random) {
  const uint64_t before = machine.progress;
  std::shuffle(threads.begin(), threads.end(), random);
  for (const int thread : threads) {
    if (!machine.fibers[thread].done) resume(thread);
  }
  return machine.progress != before;
}

inline void run_block(std::mt19937& random) {
  const int threads = static_cast<int>(machine.block_size.x);
  machine.block = {.alive = threads};
  machine.warps.assign((threads + 31) / 32, {});
  std::vector<std::vector<int>> warps(machine.warps.size());
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = machine.fibers[i];
    fiber.started = fiber.done = false;
    ++machine.warps[i / 32].barrier.alive;
    warps[i / 32].push_back(i);
  }
  memset(machine.shared.data(), 0xff, machine.shared.size() * sizeof(double));
  for (const std::span<char> array : machine.shared_arrays)
    memset(array.data(), 0xff, array.size());
  while (machine.block.alive > 0) {
    const uint64_t before = machine.progress;
    std::shuffle(warps.begin(), warps.end(), random);
    for (std::vector<int>& warp : warps) {
      const bool ahead = random() % 2 == 0;
      while (take_turn(warp, random) && ahead) {
      }
    }
    if (machine.progress == before) {
      throw std::logic_error("emulator: deadlock, a barrier is not reached by all threads");
    }
  }
}

template <class Body>
void run(int64_t grid, int block, int64_t shared_bytes, const Body& body) {
  const char* seed = std::getenv("PAMA_EMULATE_SEED");
  const char* deleted = std::getenv("PAMA_EMULATE_WITHOUT");
  machine.deleted = deleted ? deleted : "";
  std::mt19937 random(seed ? std::atoi(seed) : 0);
  machine.body = body;
  machine.block_size = {static_cast<unsigned>(block)};
  machine.grid_size = {static_cast<unsigned>(grid)};
  machine.shared.resize(shared_bytes / sizeof(double) + 2);
  while (machine.fibers.size() < static_cast<size_t>(block)) {
    machine.fibers.emplace_back().stack = std::make_unique<char[]>(kStack);
  }
  for (int64_t i = 0; i < grid; ++i) {
    machine.block_index = {static_cast<unsigned>(i)};
    run_block(random);
  }
}

// A block's static shared memory; the first block to come by constructs it.
template <class T, int N>
class SharedArray {
 public:
  SharedArray() {
    memset(at_, 0xff, sizeof(at_));
    machine.shared_arrays.push_back({reinterpret_cast<char*>(at_), sizeof(at_)});
  }
  operator T*() { return at_; }

 private:
  T at_[N];
};

inline bool deleted(const std::source_location& here) {
  if (machine.deleted.empty()) return false;
  const std::string path = here.file_name();
  const std::string name = path.substr(path.rfind('/') + 1);
  return machine.deleted == name + ":" + std::to_string(here.line());
}

// Every lane of the warp offers a value and takes that of `source`.
template <class T>
T exchange(T value, int source) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  Warp& mine = warp();
  memcpy(&mine.slot[lane()], &value, sizeof(T));
  wait(mine.barrier);
  T taken;
  memcpy(&taken, &mine.slot[source], sizeof(T));
  wait(mine.barrier);
  return taken;
}

}  // namespace pama::emulator

#define threadIdx \
  (::pama::emulator::Index{static_cast<unsigned>(::pama::emulator::machine.current)})
#define blockIdx (::pama::emulator::machine.block_index)
#define blockDim (::pama::emulator::machine.block_size)
#define gridDim (::pama::emulator::machine.grid_size)

inline void __syncthreads(const std::source_location here = std::source_location::current()) {
  if (pama::emulator::deleted(here)) return;
  pama::emulator::wait(pama::emulator::machine.block);
}

inline void __syncwarp(unsigned = 0xffffffffu,
                       const std::source_location here = std::source_location::current()) {
  if (pama::emulator::deleted(here)) return;
  pama::emulator::wait(pama::emulator::warp().barrier);
}

template <class T>
T __shfl_sync(unsigned, T value, int source) {
  return pama::emulator::exchange(value, source % 32);
}

template <class T>
T __shfl_down_sync(unsigned, T value, int distance) {
  const int lane = pama::emulator::lane(), source = lane + distance;
  return pama::emulator::exchange(value, source < 32 ? source : lane);
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int bits) {
  return pama::emulator::exchange(value, pama::emulator::lane() ^ bits);
}

inline unsigned __ballot_sync(unsigned, bool predicate) {
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane) {
    votes |= static_cast<unsigned>(pama::emulator::exchange(static_cast<int>(predicate), lane))
             << lane;
  }
  return votes;
}

inline bool __any_sync(unsigned mask, bool predicate) {
  return __ballot_sync(mask, predicate) != 0;
}
inline int __ffs(unsigned x) { return x ? __builtin_ctz(x) + 1 : 0; }
