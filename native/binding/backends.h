// Backends by name: those linked in, and those in shared libraries beside the addon.
#pragma once
#include <string>

#include "../backend.h"

namespace mb::binding {

// Opens libmambabyte_<name>.so on first use: the file named by the environment variable MAMBABYTE_<NAME>_LIB if it is
// set, else the one beside the addon. A library stays open for the life of the process.
Status find_backend(const std::string& name, const Backend** out);

}  // namespace mb::binding
