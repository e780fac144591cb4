package hook_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/plinqx/hypha/internal/hook"
)

func TestTemplate(t *testing.T) {
	long := strings.Repeat("n", hook.MaxVaultName)
	values := map[string]string{"A": "alpha", "a-b_1": "beta", "twice": "{{vault.A}}", long: "long"}
	for _, tc := range []struct {
		value   string
		names   []string
		filled  string
		missing string
	}{
		{"", nil, "", ""},
		{"plain", nil, "plain", ""},
		{"{{vault.A}}", []string{"A"}, "alpha", ""},
		{"Bearer {{vault.A}}", []string{"A"}, "Bearer alpha", ""},
		{"{{vault.a-b_1}}:{{vault.A}}/{{vault.A}}", []string{"A", "a-b_1"}, "beta:alpha/alpha", ""},
		{"{{vault." + long + "}}", []string{long}, "long", ""},
		{"{{vault.a}}", []string{"a"}, "", "a"}, // names differ in case
		{"x{{vault.none}}y", []string{"none"}, "", "none"},
		// A value is not looked through again.
		{"{{vault.twice}}", []string{"twice"}, "{{vault.A}}", ""},
		// Braces that begin no reference are text.
		{"{{", nil, "{{", ""},
		{"{{name}}", nil, "{{name}}", ""},
		{"{{ user.id }}", nil, "{{ user.id }}", ""},
		{"{{vaulted.A}}", nil, "{{vaulted.A}}", ""},
		{"{{vault-of.A}}", nil, "{{vault-of.A}}", ""},
		{"{vault.A}", nil, "{vault.A}", ""},
		{"vault.A}}", nil, "vault.A}}", ""},
		{"{{{vault.A}}}", []string{"A"}, "{alpha}", ""},
		{"{{x{{vault.A}}", []string{"A"}, "{{xalpha", ""},
		{"}}{{vault.A}}{{", []string{"A"}, "}}alpha{{", ""},
	} {
		p, err := hook.ParseTemplate(tc.value)
		if err != nil {
			t.Errorf("%q: %v", tc.value, err)
			continue
		}
		if got := p.Names(); !slices.Equal(got, tc.names) {
			t.Errorf("%q names %q, want %q", tc.value, got, tc.names)
		}
		filled, missing := p.Fill(func(name string) (string, bool) { v, ok := values[name]; return v, ok })
		if filled != tc.filled || missing != tc.missing {
			t.Errorf("%q is filled to %q, missing %q; want %q, %q", tc.value, filled, missing, tc.filled, tc.missing)
		}
	}
	for _, value := range []string{
		"{{vault", "{{vault.", "{{vault.A", "{{vault.A}", "{{vault}}", "{{vault.}}", "{{ vault.A}}", "{{vault.A }}", "{{ vault.A }}", "{{vault .A}}",
		"{{Vault.A}}", "{{VAULT.A}}", "{{vault:A}}", "{{vault.A.B}}", "{{vault.A/B}}", "{{vault.ä}}", "{{vault." + long + "n}}",
		"{{vault.A}}{{vault.}}", "ok {{vault.A}} then {{vault.{{vault.A}}}}", "{{\tvault.A}}",
	} {
		if p, err := hook.ParseTemplate(value); err == nil || !strings.Contains(err.Error(), "{{vault.NAME}}") {
			t.Errorf("%q is taken (%q): %v", value, p.Names(), err)
		}
	}
}

func TestVaultNames(t *testing.T) {
	got := hook.VaultNames(map[string]string{"X": "{{vault.B}}{{vault.A}}", "Y": "{{vault.B}}", "Z": "none", "Q": "{{vault.}}"})
	if !slices.Equal(got, []string{"A", "B"}) {
		t.Errorf("%q", got)
	}
}

// FuzzTemplate states the rules a second time, as regular expressions.
func FuzzTemplate(f *testing.F) {
	for _, value := range []string{
		"", "Bearer {{vault.A}}", "{{vault.a-b_1}}:{{vault.A}}/{{vault.A}}", "{{{vault.A}}}", "{{x{{vault.A}}", "{{vault{{vault.A}}", "}}{{vault.A}}{{",
		"{{ vault.A}}", "{{vault.A }}", "{{Vault.A}}", "{{vault:A}}", "{{vault.{{vault.A}}}}", "{{vault", "{{vaulted.A}}", "{{vault.A}", "{{\tVAULT}}", "{{name}}",
	} {
		f.Add(value, "{{vault.B}}")
		f.Add(value, "s3cret$1")
	}
	reference := regexp.MustCompile(`\{\{vault\.([A-Za-z0-9_-]{1,64})\}\}`)
	near := regexp.MustCompile(`(?i)\{\{[ \t]*vault([.: \t}]|$)`)
	f.Fuzz(func(t *testing.T, value, secret string) {
		template, err := hook.ParseTemplate(value)
		if rest := reference.ReplaceAllLiteralString(value, "x"); err != nil {
			if !near.MatchString(rest) {
				t.Errorf("%q is refused, and has nothing like a reference but references", value)
			}
			return
		}
		var want []string
		for _, m := range reference.FindAllStringSubmatch(value, -1) {
			want = append(want, m[1])
		}
		slices.Sort(want)
		want = slices.Compact(want)
		if names := template.Names(); !slices.Equal(names, want) {
			t.Errorf("%q names %q, want %q", value, names, want)
		}
		// A secret's value is not looked through again.
		filled, missing := template.Fill(func(string) (string, bool) { return secret, true })
		if want := reference.ReplaceAllLiteralString(value, secret); filled != want || missing != "" {
			t.Errorf("%q filled with %q is %q (missing %q), want %q", value, secret, filled, missing, want)
		}
		if literal, want := template.Literal(), reference.ReplaceAllLiteralString(value, ""); literal != want {
			t.Errorf("%q without references is %q, want %q", value, literal, want)
		}
		filled, missing = template.Fill(func(name string) (string, bool) { return "{{vault." + name + "}}", true })
		if filled != value || missing != "" {
			t.Errorf("%q, filled with its own references, is %q (missing %q)", value, filled, missing)
		}
		filled, missing = template.Fill(func(string) (string, bool) { return secret, false })
		if known := len(want) == 0; known != (missing == "") || !known && (filled != "" || !slices.Contains(want, missing)) {
			t.Errorf("%q with no secret there is %q (missing %q)", value, filled, missing)
		}
	})
}
