package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The README's session is run as it stands there: the server, the receiver, and
// then every line of the third terminal.
func TestReadmeSession(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := map[string]string{}
	for _, m := range regexp.MustCompile("(?s)<!-- session: (\\w+) -->\n```sh\n(.*?)```").FindAllStringSubmatch(string(readme), -1) {
		blocks[m[1]] = m[2]
	}
	if len(blocks) != 3 {
		t.Fatalf("the README has %d blocks of the session, want server, receiver and curl", len(blocks))
	}
	tour := filepath.Join(root, "hypha-tour")
	removeTour := func() {
		if err := os.RemoveAll(tour); err != nil {
			t.Fatal(err)
		}
	}
	removeTour()
	t.Cleanup(removeTour)

	terminal := func(script string) *programProcess {
		cmd := exec.Command("bash", "-c", script)
		cmd.Dir = root
		return spawnCommand(t, cmd, nil)
	}
	server := terminal(blocks["server"])
	server.stderr.await(t, server.exited, "msg=ready")
	receiver := terminal(blocks["receiver"])
	receiver.stderr.await(t, receiver.exited, "receiving on")

	session := exec.Command("bash", "-euo", "pipefail", "-c", blocks["curl"])
	session.Dir = root
	out, err := session.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text := string(out)
	t.Logf("\n%s", text)

	if !regexp.MustCompile(`(?m)^wh_[a-z0-9]{26}$`).MatchString(text) {
		t.Error("no webhook's id was printed")
	}
	type shown struct {
		Event              string
		Verified, Repeated bool
		Answered           int
		Body               struct{ Type string }
	}
	var last []shown
	for _, line := range strings.Split(strings.TrimSpace(text), "\n") {
		if !strings.HasPrefix(line, `{"event":"evt_`) {
			continue
		}
		var a shown
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			t.Fatal(err)
		}
		last = append(last, a)
	}
	// Three looks: after 1, 4 and 5 attempts; the last one shows them all.
	if len(last) != 1+4+5 {
		t.Fatalf("%d attempts were shown, want 1, 4 and 5", len(last))
	}
	last = last[5:]
	for i, want := range []struct {
		kind     string
		answered int
	}{{"order.paid", 200}, {"order.shipped", 500}, {"order.shipped", 500}, {"order.shipped", 500}, {"order.shipped", 200}} {
		if got := last[i]; got.Body.Type != want.kind || got.Answered != want.answered || !got.Verified || got.Repeated {
			t.Errorf("attempt %d: %+v, want %+v, verified", i+1, got, want)
		}
	}
	for i := 2; i <= 4; i++ {
		if last[i].Event != last[1].Event {
			t.Errorf("attempt %d is of another event than the one before", i+1)
		}
	}
	for _, want := range []string{`"status":"FAILED"`, `"failedDeliveries":3`, `"retried":1`} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is not in what the session printed", want)
		}
	}
}
