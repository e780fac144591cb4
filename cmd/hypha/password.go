package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// maxPasswordInput is how much is read for a password: far more than one may have.
const maxPasswordInput = 64 << 10

// password reads a password: from the standard input to its end, without the line
// break there, or at the terminal, twice and without an echo. It is never an argument,
// which everybody on the machine could read.
func (p *process) password(piped bool) (string, error) {
	file, ok := p.stdin.(*os.File)
	if ok && term.IsTerminal(int(file.Fd())) {
		return p.typedPassword(file)
	}
	if !piped {
		return "", usageError{errors.New("the standard input is no terminal to ask for a password at; pipe it in, with --password-stdin")}
	}
	raw, err := io.ReadAll(io.LimitReader(p.stdin, maxPasswordInput))
	if err != nil {
		return "", fmt.Errorf("read the password: %w", err)
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(raw), "\n"), "\r")
	if text == "" {
		return "", usageError{errors.New("--password-stdin: the standard input is empty")}
	}
	return text, nil
}

func (p *process) typedPassword(terminal *os.File) (string, error) {
	first, err := p.typed(terminal, "Password: ")
	if err != nil {
		return "", err
	}
	second, err := p.typed(terminal, "Again: ")
	if err != nil {
		return "", err
	}
	if first != second {
		return "", errors.New("the two differ; nothing was changed")
	}
	return first, nil
}

// typed asks at the terminal, which echoes again whatever ends it.
func (p *process) typed(terminal *os.File, prompt string) (string, error) {
	fd := int(terminal.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return "", err
	}
	fmt.Fprint(p.stderr, prompt)
	type answer struct {
		text []byte
		err  error
	}
	given := make(chan answer, 1)
	go func() { // ends with the line, or with the process, which ends next
		text, err := term.ReadPassword(fd)
		given <- answer{text, err}
	}()
	defer fmt.Fprintln(p.stderr)
	select {
	case a := <-given:
		return string(a.text), a.err
	case <-p.ctx.Done():
		return "", errors.Join(errInterrupted(), term.Restore(fd, before))
	}
}
