#pragma once
// The caller's `cascade_image`s as `Image`s. A null pointer or an unknown kind is the call's fault;
// a frame that does not fit its memory is found out when it is read, and fails alone.
#include <vector>

#include "cascade/cascade.h"
#include "session.h"

namespace cascade {

std::vector<Image> images_of(const cascade_image* images, std::size_t count);

}  // namespace cascade
