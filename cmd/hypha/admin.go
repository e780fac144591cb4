package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/plinqx/hypha/internal/adminsocket"
	"github.com/plinqx/hypha/internal/obs"
)

// adminCommand administers a server that runs, through its admin socket. What it does
// is what the API does, and takes effect at once.
type adminCommand struct {
	Config string `help:"File with settings, in YAML: the server's, for its folder or socket." placeholder:"FILE"`
	Data   string `help:"Data folder of the server." default:"./hypha-data" placeholder:"DIR"`
	adminSocketSetting
	JSON bool `help:"Print what the API answers, as JSON." once:""`

	Tenants      adminTenants      `cmd:"" help:"Who shares the server."`
	Users        adminUsers        `cmd:"" help:"People of a tenant: their roles, passwords and sessions."`
	Keys         adminKeys         `cmd:"" help:"API keys of a tenant."`
	OperatorKeys adminOperatorKeys `cmd:"" help:"Keys of those who run the server."`
	SecretKeys   adminSecretKeys   `cmd:"" help:"Keys that seal secrets at rest."`
	Rekey        adminRekeyCommand `cmd:"" help:"Seal all secrets anew, under the current secret key. Started again, it goes on."`
	Audit        adminAudit        `cmd:"" help:"Who changed what."`
}

// adminClient asks the server. Its answers are shown to people, or as they are.
type adminClient struct {
	*process
	http   *http.Client
	socket string
	json   bool
}

// open makes a client of the server. It connects when something is asked.
func (a *adminCommand) open(p *process) (*adminClient, error) {
	path := a.in(a.Data)
	if path == "" {
		return nil, usageError{errors.New("--admin-socket is off, and there is no other way to the server; name the socket's path")}
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return adminsocket.Dial(ctx, path) }
	// A command asks a few questions: a connection kept is one to be closed.
	return &adminClient{process: p, http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}, socket: path, json: a.JSON}, nil
}

// question is what the API is asked.
type question struct {
	method, path string
	tenant       string // whom it is for; "" for none
	query        url.Values
	body         any // nil for none
}

// send asks. The answer's body is the caller's to close; its status is that of a
// success.
func (c *adminClient) send(q question) (*http.Response, error) {
	var body io.Reader = http.NoBody
	if q.body != nil {
		raw, err := json.Marshal(q.body)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(raw)
	}
	to := "http://hypha/services" + q.path
	if len(q.query) > 0 {
		to += "?" + q.query.Encode()
	}
	req, err := http.NewRequestWithContext(c.ctx, q.method, to, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "hypha-admin/"+obs.Version())
	if q.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if q.tenant != "" {
		req.Header.Set("X-Hypha-Tenant", q.tenant)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	if resp.StatusCode >= http.StatusMultipleChoices {
		defer func() { _ = resp.Body.Close() }()
		return nil, refusedBy(resp)
	}
	return resp, nil
}

// ask asks, and answers the body.
func (c *adminClient) ask(q question) (json.RawMessage, error) {
	resp, err := c.send(q)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, c.explain(err)
	}
	return raw, nil
}

// explain says what to do about a server that can't be asked.
func (c *adminClient) explain(err error) error {
	folder := filepath.Dir(c.socket)
	switch {
	case c.ctx.Err() != nil:
		return errInterrupted()
	case errors.Is(err, fs.ErrNotExist):
		if _, missing := os.Stat(folder); errors.Is(missing, fs.ErrNotExist) {
			return fmt.Errorf("there is no folder %s; name the server's with --data, or its socket with --admin-socket", folder)
		}
		return fmt.Errorf("no server runs with the admin socket %s; start it, or name another's folder with --data or its socket with --admin-socket (a server with --database-url has a socket only where its --admin-socket says)", c.socket)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no server listens on %s any more: it was killed; start it again", c.socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s is not open to your account; run this as the account that runs the server, or as root", c.socket)
	case errors.Is(err, adminsocket.ErrStranger):
		return fmt.Errorf("%s is not trusted: %w", c.socket, err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return fmt.Errorf("the server at %s closed the connection: it is stopping, or this is neither its account nor root; its log says more", c.socket)
	default:
		return fmt.Errorf("%s: %w", c.socket, err)
	}
}

func errInterrupted() error { return errors.New("interrupted") }

// refusedBy is what the API says against a question.
func refusedBy(resp *http.Response) error {
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return err
	}
	var said struct {
		Error struct {
			Message string
			Details []struct{ Path, Message string }
		}
	}
	if json.Unmarshal(raw, &said) != nil || said.Error.Message == "" {
		return fmt.Errorf("the server answered %s", resp.Status)
	}
	message := said.Error.Message
	for i, d := range said.Error.Details {
		sep := "; "
		if i == 0 {
			sep = ": "
		}
		message += sep + strings.TrimSpace(d.Path+" "+d.Message)
	}
	return errors.New(printable(message))
}

// page is an answer of a list.
type page struct {
	Data       []json.RawMessage `json:"data"`
	NextCursor *string           `json:"nextCursor"`
}

// pageSize is the most that the API gives at once.
const pageSize = 1000

// list reads a list to its end, or most of it (0: all).
func (c *adminClient) list(q question, most int) (*page, error) {
	all := &page{Data: []json.RawMessage{}}
	if q.query == nil {
		q.query = url.Values{}
	}
	for {
		limit := pageSize
		if most > 0 {
			limit = min(limit, most-len(all.Data))
		}
		q.query.Set("limit", fmt.Sprint(limit))
		raw, err := c.ask(q)
		if err != nil {
			return nil, err
		}
		var next page
		if err := json.Unmarshal(raw, &next); err != nil {
			return nil, err
		}
		all.Data, all.NextCursor = append(all.Data, next.Data...), next.NextCursor
		if next.NextCursor == nil || most > 0 && len(all.Data) >= most {
			return all, nil
		}
		q.query.Set("cursor", *next.NextCursor)
	}
}

// tenant is the tenant that is named, or the only one that there is.
func (c *adminClient) tenant(named string) (string, error) {
	if named != "" {
		return named, nil
	}
	found, err := c.list(question{method: http.MethodGet, path: "/tenants"}, 5)
	if err != nil {
		return "", err
	}
	var tenants []string
	for _, raw := range found.Data {
		var t tenantShown
		if err := json.Unmarshal(raw, &t); err != nil {
			return "", err
		}
		if len(found.Data) == 1 {
			return t.ID, nil
		}
		tenants = append(tenants, fmt.Sprintf("%s (%s)", t.ID, printable(t.Name)))
	}
	if len(tenants) == 0 {
		return "", errors.New("there is no tenant; make one with hypha admin tenants create")
	}
	if found.NextCursor != nil {
		tenants = append(tenants, "…")
	}
	return "", usageError{fmt.Errorf("--tenant: there are several, name one of %s", strings.Join(tenants, ", "))}
}

// column is a field of what is shown, for people.
type column[T any] struct {
	name string
	of   func(*T) string
}

// showList prints a list: a line for each, or as the API has it.
func showList[T any](c *adminClient, found *page, columns []column[T]) error {
	if c.json {
		return c.print(found)
	}
	w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	cells := make([]string, len(columns))
	for i, col := range columns {
		cells[i] = strings.ToUpper(col.name)
	}
	fmt.Fprintln(w, strings.Join(cells, "\t"))
	for _, raw := range found.Data {
		var v T
		if err := json.Unmarshal(raw, &v); err != nil {
			return err
		}
		for i, col := range columns {
			cells[i] = cell(col.of(&v))
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if found.NextCursor != nil {
		fmt.Fprintln(c.stderr, "There are more; --limit shows as many as you like.")
	}
	return nil
}

// showOne prints one thing: a line for each field, or as the API has it.
func showOne[T any](c *adminClient, raw json.RawMessage, columns []column[T]) error {
	if c.json {
		return c.printRaw(raw)
	}
	var v T
	if err := json.Unmarshal(raw, &v); err != nil {
		return err
	}
	w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	for _, col := range columns {
		fmt.Fprintf(w, "%s\t%s\n", col.name, cell(col.of(&v)))
	}
	return w.Flush()
}

// showSecret prints what is shown once, alone, so that it can be piped; and to whom
// reads along what it is.
func (c *adminClient) showSecret(raw json.RawMessage, secret, what string, args ...any) error {
	if c.json {
		return c.printRaw(raw)
	}
	fmt.Fprintf(c.stderr, what+" This is shown once:\n", args...)
	_, err := fmt.Fprintln(c.stdout, secret)
	return err
}

// did says what was done where the API has nothing to say.
func (c *adminClient) did(q question, what string, args ...any) error {
	if _, err := c.ask(q); err != nil {
		return err
	}
	if !c.json {
		_, err := fmt.Fprintf(c.stdout, what+"\n", args...)
		return err
	}
	return nil
}

func (c *adminClient) print(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.printRaw(raw)
}

func (c *adminClient) printRaw(raw json.RawMessage) error {
	_, err := fmt.Fprintf(c.stdout, "%s\n", bytes.TrimRight(raw, "\n"))
	return err
}

// cell is a value in a table: something always, and nothing that moves the cursor.
// Names are what tenants like.
func cell(s string) string {
	if s == "" {
		return "-"
	}
	return printable(s)
}

// printable is a text without what a terminal would obey.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}

// moment is a time for people, to the second.
func moment(t *time.Time) string {
	if t == nil {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// expiry reads when something is to end.
func expiry(s string) (*time.Time, error) {
	if s == "never" {
		return nil, nil
	}
	at, err := instantOf(s, later)
	if err != nil {
		return nil, usageError{fmt.Errorf("--expires: %q is no time such as 2027-01-01T00:00:00Z, nor a duration such as 720h, nor never", s)}
	}
	return &at, nil
}

// which is the side of now on which a time is that is given as a duration.
type which bool

const (
	later   which = false
	earlier which = true
)

// instantOf reads a time: in RFC 3339, or as a duration from now.
func instantOf(s string, side which) (time.Time, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return time.Parse(time.RFC3339Nano, s)
	}
	if side == earlier {
		d = -d
	}
	return time.Now().Add(d).UTC().Truncate(time.Millisecond), nil
}
