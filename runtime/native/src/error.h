#pragma once
// What went wrong, as a status of the C API and one line for a person.
#include <stdexcept>
#include <string>
namespace cascade {
enum class Status { ok = 0, failure = 1, usage = 2, bundle = 3, target = 4, image = 5, busy = 6 };
class Error : public std::runtime_error {
public:
    Error(Status status, const std::string& message) : std::runtime_error(message), status(status) {}
    Status status;
};
}
