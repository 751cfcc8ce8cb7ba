#pragma once
// A shared library opened while the program runs. In: where it may lie. Out: its functions by name,
// or one line that says where it was looked for and how to get it.
#include <optional>
#include <string>
#include <vector>

namespace cascade {

struct LibrarySearch {
    std::string place;               // a file, or a folder that has it; empty: the loader's path
    std::vector<std::string> names;  // what the loader is asked for, in this order
    std::string advice;              // how to get it
};

class Library {
public:
    // Throws nothing; `error()` says what went wrong.
    explicit Library(const LibrarySearch& search);

    bool found() const { return handle_ != nullptr; }
    const std::string& error() const { return error_; }

    // Throws Error(target) where there is no such function.
    template <typename Function>
    void bind(Function*& function, const char* name) const {
        function = reinterpret_cast<Function*>(symbol(name));
    }

private:
    void* symbol(const char* name) const;
    void* handle_ = nullptr;  // never closed: its threads may outlive us
    std::string error_;
};

}  // namespace cascade
