package api_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestVault(t *testing.T) {
	s := newServer(t, nil)
	var ids []string
	for i := range 5 {
		made := s.must(201, "POST", "/services/vault", fmt.Sprintf(`{"name":"S%d","value":"value-%d"}`, i, i))
		ids = append(ids, made.text("id"))
		if strings.Contains(made.body, "value-") {
			t.Errorf("the value is shown: %s", made.body)
		}
	}
	var listed []string
	for next := ""; ; {
		page := s.must(200, "GET", "/services/vault?limit=2"+next, "")
		for _, row := range page.get("data").([]any) {
			listed = append(listed, row.(map[string]any)["id"].(string))
		}
		if page.get("nextCursor") == nil {
			break
		}
		next = "&cursor=" + page.text("nextCursor")
	}
	if !slices.Equal(listed, ids) {
		t.Errorf("listed %v, want %v", listed, ids)
	}
	one := "/services/vault/" + ids[0]
	for _, tc := range []struct {
		name, method, path, body string
		status                   int
		problems                 []string // the beginning of each
	}{
		{"no body", "POST", "/services/vault", "", 415, nil},
		{"no JSON", "POST", "/services/vault", "{", 400, nil},
		{"no object", "POST", "/services/vault", "[]", 400, nil},
		{"nothing in it", "POST", "/services/vault", "{}", 400, []string{"name: ", "value: "}},
		{"null", "POST", "/services/vault", `{"name":null,"value":null,"description":null}`, 400, []string{"name: ", "value: ", "description: "}},
		{"other types", "POST", "/services/vault", `{"name":1,"value":["x"],"description":{}}`, 400, []string{"name: ", "value: ", "description: "}},
		{"wrong case", "POST", "/services/vault", `{"Name":"A","VALUE":"x"}`, 400, []string{"name: ", "value: "}},
		{"twice", "POST", "/services/vault", `{"name":"A","value":"x","value":"y"}`, 400, nil},
		{"unknown", "POST", "/services/vault", `{"name":"A","value":"x","id":"vlt_1"}`, 400, []string{"id: "}},
		{"trailing bytes", "POST", "/services/vault", `{"name":"A","value":"x"} x`, 400, nil},
		{"a lone surrogate", "POST", "/services/vault", `{"name":"A","value":"\ud800"}`, 400, nil},
		{"a zero", "POST", "/services/vault", `{"name":"A\u0000","value":"x\u0000","description":"\u0000"}`, 400, []string{"name: ", "value: ", "description: "}},
		{"a line break", "POST", "/services/vault", `{"name":"A","value":"x\r\nX-Evil: 1"}`, 400, []string{"value: "}},
		{"a long value", "POST", "/services/vault", `{"name":"A","value":"` + strings.Repeat("v", 4097) + `"}`, 400, []string{"value: "}},
		{"a huge value", "POST", "/services/vault", `{"name":"A","value":"` + strings.Repeat("v", 300<<10) + `"}`, 413, nil},
		{"a mask", "POST", "/services/vault", `{"name":"A","value":"****"}`, 400, []string{"value: "}},
		{"a name that is there", "POST", "/services/vault", `{"name":"S1","value":"x"}`, 409, nil},
		{"a parameter", "GET", "/services/vault?name=S1", "", 400, []string{"name: "}},
		{"a foreign cursor", "GET", "/services/vault?cursor=xyz", "", 400, []string{"cursor: "}},
		{"no id", "GET", "/services/vault/S1", "", 404, nil},
		{"another kind of id", "GET", "/services/vault/" + strings.Replace(ids[0], "vlt_", "wh_", 1), "", 404, nil},
		{"in capitals", "GET", "/services/vault/" + strings.ToUpper(ids[0]), "", 404, nil},
		{"an unknown one", "PATCH", "/services/vault/vlt_01jd6c3v7genxa5fhm2rj8wq4t", "{", 404, nil},
		{"an unknown one", "DELETE", "/services/vault/vlt_01jd6c3v7genxa5fhm2rj8wq4t", "", 404, nil},
		{"change the name", "PATCH", one, `{"name":"B"}`, 400, []string{"name: "}},
		{"change to a mask", "PATCH", one, `{"value":"****"}`, 400, []string{"value: "}},
		{"change to nothing", "PATCH", one, `{"value":""}`, 400, []string{"value: "}},
		{"change to null", "PATCH", one, `{"value":null}`, 400, []string{"value: "}},
		{"change nothing", "PATCH", one, `{}`, 200, nil},
		{"put", "PUT", one, `{}`, 405, nil},
		{"rekey as a tenant", "POST", "/services/secret-keys/rekey", "", 403, nil},
	} {
		a := s.ask(tc.method, tc.path, tc.body)
		got := a.problems()
		if a.status != tc.status || !named(got, tc.problems) {
			t.Errorf("%s: %d %q; want %d %q\n%.300s", tc.name, a.status, got, tc.status, tc.problems, a.body)
		}
	}
	if got := s.must(200, "GET", "/services/vault", "").get("data").([]any); len(got) != len(ids) {
		t.Errorf("there are %d secrets", len(got))
	}
	s.must(204, "DELETE", one, "")
	s.must(404, "GET", one, "")
	if strings.Contains(s.log.String(), "value-") {
		t.Error("a value is in the log")
	}
}

// named reports whether each of the wanted paths is among the problems.
func named(got, want []string) bool {
	for _, w := range want {
		if !slices.ContainsFunc(got, func(g string) bool { return strings.HasPrefix(g, w) }) {
			return false
		}
	}
	return true
}
