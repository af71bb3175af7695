// What the machine has to say about a launch: one finding per kind and source line, with how often it came up.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "machine.hpp"

namespace machine {

struct Thread;

std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string place(Site site);                                        // "fwd_simt.cu:120", or the line of the PTX
std::string thread_name(const Thread& from, uint32_t block, uint32_t thread);  // "thread 5", with its block if another
std::string threads_text(const std::vector<uint32_t>& threads);  // "0-31, 40"

void clear_findings();
uint64_t count_findings(const char* kind);  // "" counts all
const char* findings_report();

// A finding after which the launch goes on. It is told as of the thread that runs now, or of the launch.
void report(const char* kind, Site site, const char* format, ...) __attribute__((format(printf, 3, 4)));
// A finding after which it cannot; from a fiber only.
[[noreturn]] void stop(const char* kind, Site site, const char* format, ...) __attribute__((format(printf, 3, 4)));

}  // namespace machine
