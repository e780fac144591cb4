package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// newTerminal is a terminal, and the hands and eyes before it.
func newTerminal(t *testing.T) (person, terminal *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	return person, terminal
}

func echoes(t *testing.T, terminal *os.File) bool {
	t.Helper()
	state, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return state.Lflag&unix.ECHO != 0
}

// atTerminal begins a command whose terminal it is, and answers what the person sees.
func atTerminal(t *testing.T, args ...string) (cmd *exec.Cmd, person, terminal *os.File, seen *lines) {
	t.Helper()
	person, terminal = newTerminal(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command(self, args...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	seen = new(lines)
	go func() { _, _ = io.Copy(seen, person) }() // ends when the terminal is closed
	return cmd, person, terminal, seen
}

// prompted waits for a prompt, and until the terminal echoes no more.
func prompted(t *testing.T, terminal *os.File, seen *lines, prompt string) {
	t.Helper()
	eventually(t, "the prompt "+prompt, func() bool { return strings.Contains(seen.String(), prompt) && !echoes(t, terminal) })
}

func TestPasswordIsTypedUnseen(t *testing.T) {
	dir := t.TempDir()
	v := startServer(t, func(s *settings) { s.Data = dir })
	for _, tc := range []struct {
		name, again, says string
		code              int
	}{
		{"two that differ", "typed-passwort\n", "the two differ; nothing was changed", 1},
		{"a new one", "typed-password\n", "Changed the password of " + testEmail, 0},
	} {
		cmd, person, terminal, seen := atTerminal(t, "admin", "users", "set-password", testEmail, "--data", dir)
		prompted(t, terminal, seen, "Password: ")
		if _, err := person.WriteString("typed-password\n"); err != nil {
			t.Fatal(err)
		}
		prompted(t, terminal, seen, "Again: ")
		if _, err := person.WriteString(tc.again); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // its exit code is looked at
		eventually(t, tc.says, func() bool { return strings.Contains(seen.String(), tc.says) })
		if code := cmd.ProcessState.ExitCode(); code != tc.code || strings.Contains(seen.String(), "typed-") || !echoes(t, terminal) {
			t.Errorf("%s: it ended with %d, the terminal echoes: %t, and shows %q", tc.name, code, echoes(t, terminal), seen)
		}
		want := 401
		if tc.code == 0 {
			want = 200
		}
		if a := ask(t, v.url(), "POST", "/services/auth/login", fmt.Sprintf(`{"email":%q,"password":"typed-password"}`, testEmail)); a.status != want {
			t.Errorf("%s: sign in: %d", tc.name, a.status)
		}
	}
}

// Whoever gives up at the prompt has a terminal that echoes, and the old password.
func TestInterruptedPromptLeavesTheTerminalAsItWas(t *testing.T) {
	dir := t.TempDir()
	v := startServer(t, func(s *settings) { s.Data = dir })
	cmd, person, terminal, seen := atTerminal(t, "admin", "users", "set-password", testEmail, "--data", dir)
	prompted(t, terminal, seen, "Password: ")
	if _, err := person.WriteString("half\x03"); err != nil { // Ctrl-C
		t.Fatal(err)
	}
	_ = cmd.Wait() // its exit code is looked at
	eventually(t, "it says that it was interrupted", func() bool { return strings.Contains(seen.String(), "interrupted") })
	if code := cmd.ProcessState.ExitCode(); code != 1 || !echoes(t, terminal) {
		t.Errorf("it ended with %d, the terminal echoes: %t", code, echoes(t, terminal))
	}
	if a := ask(t, v.url(), "POST", "/services/auth/login", fmt.Sprintf(`{"email":%q,"password":%q}`, testEmail, testPassword)); a.status != 200 {
		t.Errorf("the old password: %d", a.status)
	}
}
