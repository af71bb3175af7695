#include "findings.hpp"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>
#include <tuple>

#include "fibers.hpp"
#include "state.hpp"

namespace machine {

namespace {

struct Finding {
    std::string kind, line;
    uint64_t times;
};
std::vector<Finding> findings;
std::map<std::tuple<std::string, std::string, int>, size_t> known;  // by kind, file and line
std::string report_text;

const char* base_name(const char* path) {
    const char* slash = std::strrchr(path, '/');
    return slash ? slash + 1 : path;
}

std::string text_of(const char* format, va_list arguments) {
    va_list again;
    va_copy(again, arguments);
    std::string result(std::vsnprintf(nullptr, 0, format, arguments), '\0');
    std::vsnprintf(&result[0], result.size() + 1, format, again);
    va_end(again);
    return result;
}

// The running thread, if there is one.
std::string who() {
    if (!current) return "";
    const Dim3& at = current->block->coordinates;
    return text(" block (%u,%u,%u) thread %u", at.x, at.y, at.z, current->index);
}

void note(const char* kind, Site site, const char* format, va_list arguments) {
    auto key = std::make_tuple(std::string(kind), std::string(site ? site->file : ""),
                               site ? (site->line ? site->line : -site->ptx_line) : 0);
    auto [found, is_new] = known.emplace(key, findings.size());
    if (!is_new) {
        ++findings[found->second].times;
        return;
    }
    std::string head = text("[%s] %s%s: ", kind, place(site).c_str(), who().c_str());
    findings.push_back({kind, head + text_of(format, arguments), 1});
}

}  // namespace

std::string text(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::string result = text_of(format, arguments);
    va_end(arguments);
    return result;
}

std::string place(Site site) {
    if (!site) return "launch";
    if (site->line) return text("%s:%d", base_name(site->file), site->line);
    return text("PTX line %d", site->ptx_line);
}

std::string thread_name(const Thread& from, uint32_t block, uint32_t thread) {
    if (block == from.block->number) return text("thread %u", thread);
    Dim3 at = block_coordinates(block);
    return text("block (%u,%u,%u) thread %u", at.x, at.y, at.z, thread);
}

std::string threads_text(const std::vector<uint32_t>& threads) {
    std::string result;
    for (size_t first = 0; first < threads.size();) {
        size_t last = first;
        while (last + 1 < threads.size() && threads[last + 1] == threads[last] + 1) ++last;
        if (!result.empty()) result += ", ";
        result += first == last ? text("%u", threads[first]) : text("%u-%u", threads[first], threads[last]);
        first = last + 1;
    }
    return result;
}

void clear_findings() {
    findings.clear();
    known.clear();
}

uint64_t count_findings(const char* kind) {
    uint64_t times = 0;
    for (const Finding& finding : findings)
        if (!*kind || finding.kind == kind) times += finding.times;
    return times;
}

const char* findings_report() {
    report_text.clear();
    for (const Finding& finding : findings) {
        report_text += finding.line;
        if (finding.times > 1) report_text += text(" (and %llu more)", (unsigned long long)finding.times - 1);
        report_text += '\n';
    }
    return report_text.c_str();
}

void report(const char* kind, Site site, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    note(kind, site, format, arguments);
    va_end(arguments);
}

void stop(const char* kind, Site site, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    note(kind, site, format, arguments);
    va_end(arguments);
    leave_launch();
}

}  // namespace machine
