# Writes meshwork_version.h at build time, only when its content changes.
execute_process(COMMAND git -C ${SOURCE} describe --always --dirty --tags
                OUTPUT_VARIABLE git OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE rc)
if(NOT rc EQUAL 0 OR git STREQUAL "")
  set(git "unknown")
endif()
set(text "// Made by harness/version.cmake.
#pragma once
#define MESHWORK_VERSION \"${VERSION}\"
#define MESHWORK_GIT_DESCRIBE \"${git}\"
#define MESHWORK_COMPILER \"${COMPILER}\"
#define MESHWORK_FLAGS \"${FLAGS}\"
")
set(old "")
if(EXISTS ${OUTPUT})
  file(READ ${OUTPUT} old)
endif()
if(NOT old STREQUAL text)
  file(WRITE ${OUTPUT} "${text}")
endif()
