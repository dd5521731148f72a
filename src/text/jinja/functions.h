// What values of chat templates can do: attributes, items and methods, filters and tests.
#pragma once

#include <string>
#include <string_view>

#include "text/jinja/value.h"

namespace dynslice::jinja {

// object.name: a method, else the item of that name. Undefined when there is neither; throws TemplateError when
// `object` itself is undefined.
Value attribute_of(const Value& object, const std::string& name, Budget& budget);

// object[key]: the item, else the method of that name, likewise.
Value item_of(const Value& object, const Value& key, Budget& budget);

// object[begin:end:step], the last three integers or None.
Value slice_of(const Value& object, const Value& begin, const Value& end, const Value& step, Budget& budget);

// A method of a string or dict, undefined for a name that is none.
Value method_of(const Value& object, const std::string& name, Budget& budget);

Value apply_filter(const std::string& name, const Value& input, const Arguments& arguments, Budget& budget);
bool apply_test(const std::string& name, const Value& input, const Arguments& arguments, Budget& budget);

// left + right and so on.
Value apply_operator(const std::string& sign, const Value& left, const Value& right, Budget& budget);

// The functions range, strftime_now and raise_exception.
Value range_of(const Arguments& arguments, Budget& budget);
Value time_now(const Arguments& arguments);
[[noreturn]] void raise_exception(const Arguments& arguments, Budget& budget);

// Of equal keys the last one's value counts, at the place of the first.
Value dict_of(std::vector<std::pair<Value, Value>> items);

// A string argument. Throws TemplateError naming the function for another type.
const std::string& string_argument(std::string_view function, const Value& value);
int64_t integer_argument(const std::string& function, const Value& value);

}  // namespace dynslice::jinja
