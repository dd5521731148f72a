#include "dynslice/text/chat/chat_template.h"

#include <gtest/gtest.h>

#include <random>

#include "unit/formats/gguf_builder.h"
#include "unit/support/error_matchers.h"
#include "unit/support/temporary_folder.h"

namespace dynslice {
namespace {

using testing::expect_error;
using testing::TemporaryFolder;
using testing::write_bytes;

std::string render(const std::string& source, const OrderedJson& variables = OrderedJson::object()) {
  return ChatTemplate(source, "t").render_with(variables);
}

void expect_refused(const std::string& source, const std::vector<std::string>& parts) {
  expect_error(ErrorKind::kBadInput, parts, [&] { render(source); });
}

// Every kind of tag, literal, operator and call that there is.
constexpr const char* kEverything = R"({%- set ns = namespace(n=0, text='') -%}
{# a note #}{% macro m(a, b='x') %}<{{ a ~ b }}>{% endmacro %}
{% for message in messages if message.role != "none" %}
  {%- if loop.first and not (message['content'] is none) %}{{ bos_token + message.content[1:-1] | trim | upper }}
  {%- elif loop.last %}{{ m(message.content, b={'k': [1, 2.5, true]}.k[0]) }}{% else %}{% continue %}{% endif %}
  {% set ns.n = ns.n + 3 * 2 // 1 % 7 ** 1 - 1 %}
{% else %}{% raw %}{{ raw }}{% endraw %}{% endfor %}
{% set block %}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{% endset %}
{% generation %}{{ 'é\n\u00e9' if ns.n > 1 <= 2 else "" }}{{ messages | tojson(indent=2) }}{{ block }}{% endgeneration %}
{% if add_generation_prompt is defined and 'a' in ["a"] %}{{ range(3) | join(',') }}{% endif %})";

const OrderedJson kMessages = OrderedJson::parse(R"({"messages": [{"role": "user", "content": " Ab\"c "},
  {"role": "assistant", "content": "é"}, {"role": "user", "content": "z"}], "add_generation_prompt": true, "bos_token": "<s>"})");

TEST(ChatTemplate, PutsMessagesAndTokensIntoTheTemplate) {
  const ChatTemplate chat(
      "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
      "{% if add_generation_prompt %}[assistant]{% endif %}{% if tools is none %}.{% endif %}",
      "t", {{"bos_token", "<s>"}, {"eos_token", "</s>"}});
  const std::vector<ChatMessage> messages = {{"system", "be brief"}, {"user", "hi"}};
  EXPECT_EQ(chat.render(messages), "<s>[system]be brief</s>[user]hi</s>[assistant].");
  EXPECT_EQ(chat.render(messages, false), "<s>[system]be brief</s>[user]hi</s>.");
}

TEST(ChatTemplate, MakesMessagesValidUtf8) {
  EXPECT_EQ(ChatTemplate("{{ messages[0].content | length }}", "t").render({{"user", "a\xFF"}}), "2");
}

TEST(ChatTemplate, SaysInALineWhatTheTemplateSaysOfMessagesThatItRefuses) {
  const ChatTemplate chat(
      "a\n{% if messages[0].role == 'system' %}\n{{ raise_exception('no system\\nrole ' ~ 'x' * 9999) }}{% endif %}",
      "f.json");
  try {
    chat.render({{"system", "x"}});
    ADD_FAILURE() << "no error was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kBadInput);
    EXPECT_TRUE(std::string(error.what()).starts_with("f.json: line 3: says: no system role xxx")) << error.what();
    EXPECT_LT(std::string(error.what()).size(), 600U);
  }
}

TEST(ChatTemplate, NamesTheLineOfWhatItCannotReadOrRun) {
  expect_refused("a\n\n{% if x %}", {"t: line 3", "{% endif %}"});
  expect_refused("\n{{ 1 + }}", {"line 2", "expected a value", "\"}}\""});
  expect_refused("\n{{ x.y }}", {"line 2", "'x' is undefined"});
  expect_refused("{{ 1 + 'a' }}", {"line 1", "int", "str"});
  expect_refused("{% include 'x' %}", {"{% include %}", "not supported", "macro"});
  expect_refused("{{ x | shout }}", {"filter", "\"shout\""});
  expect_refused("{{ x is loud }}", {"test", "\"loud\""});
  expect_refused("{{ 'a'.shout() }}", {"'str' has no 'shout'"});
  expect_refused("{{ range() }}", {"range", "\"start\""});
  expect_refused("{{ 'a'.strip(1, 2) }}", {"strip", "at most 1"});
  expect_refused("{{ 9223372036854775807 + 1 }}", {"too large"});
  expect_refused("{{ 99999999999999999999 }}", {"too large"});
}

TEST(ChatTemplate, ValuesDoNotChange) {
  expect_refused("{% set x = [] %}{{ x.append(1) }}", {"'list' has no 'append'"});
  expect_refused("{% set x = {} %}{% set x.y = 1 %}", {"\"x\" is no namespace"});
  EXPECT_EQ(render("{% set x = 1 %}{% for i in [1] %}{% set x = 2 %}{% endfor %}{{ x }}"), "1");
}

TEST(ChatTemplate, LimitsWhatAnUntrustedTemplateTakes) {
  expect_refused("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", {"too much time"});
  expect_refused("{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
                 {"too much"});
  expect_refused("{{ 'abcdefgh' * 999999999999 }}", {"too much"});
  expect_refused("{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}", {"too much"});
  expect_refused("{{ ('a' * 1000000).strip('b' * 1000000 + 'a') }}", {"strip", "256"});
  expect_refused("{% set s = 'a' * 1000000 %}{% for i in range(99999) %}{{ s.startswith((s, s, s)) }}{% endfor %}",
                 {"too much"});
  expect_refused("{{ range(100001) }}", {"range", "100000"});
  expect_refused("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", {"too deep"});
  expect_refused("{% set n = namespace(x=[]) %}{% for i in range(1000) %}{% set n.x = [n.x, n.x] %}{% endfor %}",
                 {"deep"});
  expect_refused("{% set n = namespace(x={}) %}{% for i in range(1000) %}{% set n.x = {'k': n.x.items} %}{% endfor %}",
                 {"deep"});
  expect_refused("{% set n = namespace(x=[]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
                 {"too much"});
  expect_refused("{{ " + std::string(5000, '(') + "1" + std::string(5000, ')') + " }}", {"nested"});
  expect_refused("{{ " + std::string(5000, '-') + "1 }}", {"nested"});
  std::string sum = "1", nots, ifs;
  for (int i = 0; i < 5000; ++i) sum += "+1", nots += "not ", ifs += "{% if 1 %}";
  expect_refused("{{ " + sum + " }}", {"levels"});
  expect_refused("{{ " + nots + "1 }}", {"nested"});
  expect_refused(ifs, {"nested"});
  std::string names, entries;
  for (int i = 0; i < 20000; ++i) names += "a" + std::to_string(i) + "=1,", entries += std::to_string(i) + ":1,";
  expect_refused("{{ dict(" + names + ") }}", {"arguments"});
  expect_refused("{% macro m(" + names.substr(0, names.size() - 1) + ") %}{% endmacro %}", {"parameters"});
  expect_refused("{{ {" + entries + "} }}", {"too much"});
  expect_error(ErrorKind::kBadInput, {"bytes"}, [] { ChatTemplate(std::string(2 << 20, 'a'), "t"); });
  expect_error(ErrorKind::kBadInput, {"UTF-8"}, [] { ChatTemplate("\xFF", "t"); });
}

TEST(ChatTemplate, CutAtAnyByteIsReadOrRefused) {
  const std::string whole = kEverything;
  EXPECT_NE(render(whole, kMessages).find("AB\"C"), std::string::npos);
  size_t refused = 0;
  for (size_t size = 0; size < whole.size(); ++size) {
    try {
      render(whole.substr(0, size), kMessages);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kBadInput);
      ++refused;
    }
  }
  EXPECT_GT(refused, whole.size() / 2);
}

TEST(ChatTemplate, WithBytesChangedIsReadOrRefused) {
  std::mt19937 random(1);
  const std::string parts = "{}%#|-+()[]'\"\\.,:=<>~ \n0aif\xC3";
  for (int round = 0; round < 3000; ++round) {
    std::string text = kEverything;
    for (int i = 0; i < 1 + round % 4; ++i) {
      const size_t at = random() % text.size();
      if (random() % 2 == 0)
        text[at] = parts[random() % parts.size()];
      else
        text.erase(at, 1 + random() % 8);
    }
    try {
      render(text, kMessages);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kBadInput);
    }
  }
}

// ---- Where it is found ----

const std::vector<ChatMessage> kHello = {{"user", "hi"}};

TEST(ChatTemplate, OfAFolderIsTheOneOfItsOwnFileFirst) {
  const TemporaryFolder folder;
  EXPECT_FALSE(load_chat_template(folder.path()).has_value());
  write_bytes(folder / "tokenizer_config.json",
              R"({"chat_template": "config {{ bos_token }}{{ eos_token }}{{ pad_token is defined }}",
                  "bos_token": {"content": "<b>"}, "eos_token": "<e>", "pad_token": null})");
  EXPECT_EQ(load_chat_template(folder.path())->render(kHello), "config <b><e>False");
  write_bytes(folder / "chat_template.jinja", "file {{ bos_token }}");
  EXPECT_EQ(load_chat_template(folder.path())->render(kHello), "file <b>");
}

TEST(ChatTemplate, OfAListIsTheDefault) {
  const TemporaryFolder folder;
  write_bytes(folder / "tokenizer_config.json",
              R"({"chat_template": [{"name": "rag", "template": "a"}, {"name": "default", "template": "b"}]})");
  EXPECT_EQ(load_chat_template(folder.path())->render(kHello), "b");
  write_bytes(folder / "tokenizer_config.json", R"({"chat_template": [{"name": "rag", "template": "a"}]})");
  expect_error(ErrorKind::kBadInput, {"tokenizer_config.json", "default", "rag"},
               [&] { load_chat_template(folder.path()); });
  write_bytes(folder / "tokenizer_config.json", R"({"chat_template": 3})");
  expect_error(ErrorKind::kBadInput, {"tokenizer_config.json", "chat_template", "string"},
               [&] { load_chat_template(folder.path()); });
}

TEST(ChatTemplate, OfAGgufFileKnowsItsTokens) {
  const TemporaryFolder folder;
  testing::GgufBuilder builder;
  builder.text("general.architecture", "llama");
  builder.texts("tokenizer.ggml.tokens", {"<s>", "</s>", "a"}).number("tokenizer.ggml.bos_token_id", 0);
  builder.number("tokenizer.ggml.eos_token_id", 1);
  write_bytes(folder / "none.gguf", builder.bytes());
  EXPECT_FALSE(load_chat_template(folder / "none.gguf").has_value());
  builder.text("tokenizer.chat_template", "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}");
  write_bytes(folder / "one.gguf", builder.bytes());
  EXPECT_EQ(load_chat_template(folder / "one.gguf")->render(kHello), "<s>hi</s>");
}

}  // namespace
}  // namespace dynslice
