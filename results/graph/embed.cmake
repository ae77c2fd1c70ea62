# embed.cmake -- text files as NUL-terminated arrays in one C file.
#
#   cmake -DOUTPUT=page_parts.c -DFILES=page.html,page.css,page.js -P embed.cmake
#
# page.html becomes `const char page_html[]`. Bytes, not string literals: compilers limit the length of those.
string(REPLACE "," ";" FILES "${FILES}")
set(text "// Made by CMake.\n")
foreach(file ${FILES})
  get_filename_component(name "${file}" NAME)
  string(MAKE_C_IDENTIFIER "${name}" symbol)
  file(READ "${file}" bytes HEX)
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")
  string(REGEX REPLACE "(................................................................................)" "\\1\n" bytes "${bytes}")
  string(APPEND text "extern const char ${symbol}[];\nconst char ${symbol}[] = {\n${bytes}0x00};\n")
endforeach()
file(WRITE "${OUTPUT}" "${text}")
