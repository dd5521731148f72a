"""Chat templates are run as transformers runs them, by jinja2 in a sandbox."""
import itertools
import json
import re
import subprocess

import pytest
from chat_templates import CHATML, CONVERSATIONS, TEMPLATES, TOOLS, USER

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.fixture(scope="module")
def ours(helper):
    """ours([(template, variables), ...]): of each what it writes, or None where it is refused."""

    def render(cases):
        cases = [{"template": template, "variables": variables} for template, variables in cases]
        done = subprocess.run([helper("template_main")], input=json.dumps(cases), capture_output=True, text=True, check=True)
        return [result.get("text") for result in json.loads(done.stdout)]

    return render


def theirs(template, variables):
    import jinja2
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        return _compile_jinja_template(template).render(**variables)
    except (jinja2.exceptions.TemplateError, TypeError, ValueError, ArithmeticError, RecursionError):
        return None


def compare(ours, cases):
    mine = ours(cases)
    different = [(template, result, expected) for (template, variables), result in zip(cases, mine)
                 if result != (expected := theirs(template, variables))]
    assert not different, different
    return mine


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_of_known_shapes_give_the_same_text(ours, name):
    cases = []
    for messages, tools, prompt in itertools.product(CONVERSATIONS.values(), (None, TOOLS), (True, False)):
        variables = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": prompt, **TOKENS}
        cases.append((TEMPLATES[name], variables))
    texts = compare(ours, cases)
    assert sum(text is not None for text in texts) >= 8, "most conversations are refused: the comparison says little"


EXPRESSIONS = r"""
1 + 2 * 3 - 4 // 3 % 2 ** 2 ; -7 // 2 ; -7 % 3 ; 7 / 2 ; 2 ** -1 ; 1.5 * 2 ; 1e20 ; 1e-7 ; 0.1 + 0.2 ; 100 * 1.0 ; -x
"a" ~ 1 ~ none ~ true ~ [1, "b'", 2.5] ~ {"k": "v"} ; "a" "b" ; 'it\'s\n\x41\u00e9\q' ; "a" * 3 ; [1] + [2] ; ("a", "b") | join(",")
1 < 2 < 3 ; 1 < 3 < 2 ; "a" < "b" ; 1 == 1.0 ; true == 1 ; none == false ; "1" == 1 ; 2 in [1, 2] ; "b" not in "abc"
missing is defined ; missing ; missing.x ; missing ~ "x" ; missing + "x" ; not missing ; missing == missing ; missing | length
d.a ; d["a"] ; d.missing ; d.items() | list | tojson ; d.get("z", 5) ; d.get("z") ; d.keys() | list ; "a" in d ; d | length ; d.values() | list
s[0] ; s[-1] ; s[1:3] ; s[::-1] ; s[:-1] ; s[5:1:-2] ; s | length ; xs[1:] ; xs[-1] ; xs[::2] ; xs[99] ; xs | first ; xs | last
[] | first ; xs | reverse | list ; s | reverse ; xs | join("-") ; xs | join ; objects | map(attribute="n") | join(",") ; "a b" | title
" x " | trim ~ "|" ; "xay" | trim("xy") ; "aB" | upper ; "aB" | lower ; "aB c" | capitalize ; "aXbX" | replace("X", "-") ; "3" | int + 1
"3.7" | int ; "z" | int ; "z" | int(5) ; none | default("d") ; missing | default("d") ; "" | default("d", true) ; 1 | string + "s"
objects | selectattr("n", "equalto", 1) | list ; objects | selectattr("t") | map(attribute="n") | list ; xs | select("odd") | list
objects | rejectattr("n", "gt", 1) | list ; xs | reject("divisibleby", 2) | list ; d | items | list | tojson ; d | tojson ; objects | tojson(indent=2)
"é\n\"<&>" | tojson ; [1.0, 2, none, true, "x", []] | tojson ; {} | tojson(indent=1) ; "a\nb\n\nc" | indent(2) ; "a\nb" | indent(2, true)
3 is odd ; 4 is even ; 4 is divisibleby 2 ; 4 is divisibleby(3) ; "x" is string ; d is mapping ; xs is iterable ; xs is sequence
none is none ; 1 is number ; 1.0 is float ; true is boolean ; true is integer ; 1 is not none ; "A" is upper ; xs is sameas xs ; 1 is eq 1
" a b  c ".split() ; "a,b,,c".split(",") ; "a,b,c".split(",", 1) ; " a b c ".split(none, 1) ; "a\nb".splitlines() ; "-".join(["a", "b"])
"abc".startswith("ab") ; "abc".endswith(("x", "c")) ; "abc".find("c") ; "xxabcx".strip("x") ; " é ".strip() ; "aXa".replace("a", "b", 1)
"abc".removeprefix("ab") ; "abc".removesuffix("bc") ; "äÖ".upper() ; "ÄÖ".lower() ; "hello world".title() ; "HELLO".capitalize()
1 if true else 2 ; 1 if false ; (1 if missing else 2) + 1 ; "a" if x and not missing or d else "b" ; x or missing ; 0 or "z" ; 1 and 2
range(3) | list ; range(1, 8, 3) | list ; range(3, 0, -1) | list ; dict(a=1) ; namespace(a=1).a ; x is in [1, 5] ; 1 | string | length
"a" + 1 ; 1 // 0 ; xs.foo ; xs | nosuch ; x is nosuch ; [1, 2 ; {"a" 1} ; x y ; (1, ; "open ; 5() ; missing() ; 1 < "a"
"%" ~ "x" ; not true == false ; -1 | string ; [x, -x] ; {"a": {"b": [1]}}.a.b[0] ; "}}" ~ '{%' ; xs[0:2] | length > 1 ; x is defined and x
""".replace("\n", " ; ")


def test_expressions_have_pythons_values(ours):
    variables = {"x": 5, "s": "aé\U0001f600bcd", "xs": [1, 2, 3, 4], "d": {"a": 1, "b": [2]},
                 "objects": [{"n": 1, "t": True}, {"n": 2, "t": False}, {"n": 3, "t": "y"}]}
    expressions = [text.strip() for text in re.split(r" ;(?= )", EXPRESSIONS) if text.strip()]
    texts = compare(ours, [("[{{ " + expression + " }}]", variables) for expression in expressions])
    assert sum(text is not None for text in texts) > 0.8 * len(texts) > 100


STATEMENTS = [
    "a\n  {% if x %}\n    b\n  {% endif %}\nc\n", "  {%- if x -%}  b  {%- endif -%}  c", "{% if x %}\n\nb{% endif %}\n",
    "a  {# note #}  b\n  {# note #}\nc", "a {#- note -#} b", "{{ x }}\n{{ x }}\n\n", "{{- x -}}  \n y", "  {%+ if x %} b {%+ endif +%}\nc",
    "{% raw %}{{ x }} {% if %}{% endraw %} y", "{%- raw -%}  {{ x }}  {%- endraw -%}  y", "  {% set y = 1 %}\n{{ y }}", "\r\na\r\n{% if x %}\r\nb{% endif %}",
    "{% for a in xs %}{{ loop.index }}/{{ loop.length }}{{ a }}{% if not loop.last %},{% endif %}{% endfor %}",
    "{% for a in xs %}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.cycle('a', 'b') }}{{ loop.previtem }}{{ loop.nextitem }};{% endfor %}",
    "{% for a in xs if a % 2 %}{{ loop.length }}{{ a }}{% else %}none{% endfor %}", "{% for a in [] %}x{% else %}none{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }} {% endfor %}", "{% for a in xs %}{% if a == 2 %}{% continue %}{% endif %}{% if a == 4 %}{% break %}{% endif %}{{ a }}{% endfor %}",
    "{% set y = 1 %}{% for a in xs %}{% set y = y + a %}{{ y }}{% endfor %}{{ y }}", "{% set n = namespace(y=1) %}{% for a in xs %}{% set n.y = n.y + a %}{% endfor %}{{ n.y }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set y %}  b{{ x }} {% endset %}[{{ y }}]", "{% if x %}{% set y = 3 %}{% endif %}{{ y }}",
    "{% macro m(a, b='z') %}<{{ a }}{{ b }}{{ x }}>{% endmacro %}{{ m(1) }}{{ m(1, b=2) }}{{ m() }}{{ m(1, 2, 3) }}",
    "{% macro m(a, b='z') %}<{{ a }}{{ b }}{{ x }}>{% endmacro %}{{ m(1) }}{{ m(1, b=2) }}{{ m() }}{{ m(b=1) | upper }}",
    "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}", "{% generation %}{% set y = 2 %}{{ y }}{% endgeneration %}{{ y }}",
    "{% if missing %}a{% elif x == 5 %}b{% else %}c{% endif %}", "{{ x }", "{% if x %}", "{% endif %}", "{% for x %}{% endfor %}", "{{ }}", "{% %}", "{%",
    "{% for c in 'aé' %}[{{ c }}]{% endfor %}", "{{ {'a': {'b': 1}}['a']['b'] }}", "{{ {'a': 1}}}", "{% set x.y = 1 %}", "{{ raise_exception('no') }}",
    "{% for a in xs %}{% for b in xs %}{{ a * b }}{% if b == 2 %}{% break %}{% endif %}{% endfor %};{% endfor %}", "{% set loop = 1 %}{{ loop }}", "{{ 'a' }}{{ '\n' }}\n",
    "{%- for a in xs -%}\n  {{- a -}}\n{%- endfor -%}\n\n", "x{% if x %}\n  {{ x }}\n{%- endif %}\ny", "{{ strftime_now('%%') }}", "\t{% if x %}\t{% endif %}\t\nz", "{{-x}}", "{{ -1 }}", "{{-1}}",
]


def test_statements_and_white_space_are_those_of_jinja2(ours):
    variables = {"x": 5, "xs": [1, 2, 3, 4], "d": {"a": 1, "b": 2}}
    texts = compare(ours, [(statement, variables) for statement in STATEMENTS])
    assert sum(text is not None for text in texts) > 35


def test_a_date_is_todays(ours):
    import datetime

    before = datetime.date.today().strftime("%d %b %Y")
    text = ours([("{{ strftime_now('%d %b %Y') }}", {})])[0]
    assert text in (before, datetime.date.today().strftime("%d %b %Y"))


def test_the_text_of_a_conversation_is_what_apply_chat_template_gives(run, model, tiny_model, tiny_tokenizer, tmp_path):
    """Of a folder whose tokenizer transformers wrote, with one template, with several, and with the older key."""
    import shutil

    source = tiny_model("llama", max_position_embeddings=2048)
    for name, template in {"one": TEMPLATES["llama_3"], "several": {"default": CHATML, "tool_use": "unused"}}.items():
        folder = tmp_path / name
        shutil.copytree(source, folder)
        tiny_tokenizer.chat_template = template
        try:
            tiny_tokenizer.save_pretrained(folder)
            arguments = ["--chat", "--prompt", USER["content"], "--max-tokens", "1", "--json"]
            for system in ([], ["--system", "Be brief."]):
                messages = ([{"role": "system", "content": system[1]}] if system else []) + [USER]
                expected = tiny_tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
                ids = tiny_tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
                result = run("generate", folder, *arguments, *system).json()
                assert result["prompt"] == expected and result["prompt_ids"] == ids
        finally:
            tiny_tokenizer.chat_template = None


def test_the_real_models_template_is_run_as_transformers_does(run, model):
    from gguf import GGUFReader

    template = GGUFReader(model).fields["tokenizer.chat_template"].contents()
    for system in ([], ["--system", "Be brief."]):
        messages = ([{"role": "system", "content": system[1]}] if system else []) + [USER]
        expected = theirs(template, {"messages": messages, "add_generation_prompt": True})
        result = run("generate", model, "--chat", "--prompt", USER["content"], *system, "--max-tokens", "1", "--json").json()
        assert result["prompt"] == expected and expected is not None
