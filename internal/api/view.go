package api

import (
	"encoding/base64"
	"math"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/plinqx/hypha/internal/auth"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/ingest"
	"github.com/plinqx/hypha/internal/registry"
)

// The shapes of what is shown. openapi.yaml describes each field.

// instant is a time as answers show it: RFC 3339, milliseconds, UTC.
type instant time.Time

// MarshalText is for JSON.
func (t instant) MarshalText() ([]byte, error) {
	return time.Time(t).UTC().AppendFormat(nil, ingest.TimeFormat), nil
}

// orNull is null for the zero time.
func orNull(t time.Time) *instant {
	if t.IsZero() {
		return nil
	}
	return (*instant)(&t)
}

// milliseconds shows a duration with the microseconds as a fraction.
func milliseconds(d time.Duration) float64 {
	return math.Round(float64(d)/float64(time.Microsecond)) / 1000
}

// page is a list with a cursor.
type page[T any] struct {
	Data       []T     `json:"data"`
	NextCursor *string `json:"nextCursor"`
}

// numberedPage is a list that can be paged by offset too.
type numberedPage[T any] struct {
	Data       []T     `json:"data"`
	Total      int64   `json:"total"`
	TotalMore  bool    `json:"totalMore,omitzero"`
	Limit      int     `json:"limit"`
	Offset     int     `json:"offset"`
	NextCursor *string `json:"nextCursor"`
}

type webhookView struct {
	ID             id.Webhook           `json:"id"`
	Name           string               `json:"name"`
	URL            string               `json:"url"`
	Events         []string             `json:"events"`
	Enabled        bool                 `json:"enabled"`
	Headers        map[string]string    `json:"headers"`
	TimeoutMS      int64                `json:"timeoutMs"`
	Description    string               `json:"description"`
	DisabledReason *hook.DisabledReason `json:"disabledReason"`
	PausedUntil    *instant             `json:"pausedUntil"`
	// Signatures, and what they are made with now, newest first.
	Signatures []hook.SignatureVersion `json:"signatures"`
	Secrets    []secretView            `json:"secrets"`
	PublicKeys []publicKeyView         `json:"publicKeys"`
	CreatedAt  instant                 `json:"createdAt"`
	UpdatedAt  instant                 `json:"updatedAt"`
	Secret     string                  `json:"secret,omitempty"`
}

// secretView tells of a secret all but the secret.
type secretView struct {
	CreatedAt *instant `json:"createdAt"`
	Until     *instant `json:"until"`
}

type publicKeyView struct {
	ID        string   `json:"id"`
	Key       string   `json:"key"`
	CreatedAt *instant `json:"createdAt"`
	Until     *instant `json:"until"`
}

func (a *api) webhookView(w *hook.Webhook) webhookView {
	v := webhookView{
		ID: w.ID, Name: w.Name, URL: w.URL, Events: w.Events, Enabled: w.Enabled,
		Headers: registry.MaskHeaders(w.Headers), TimeoutMS: w.Timeout.Milliseconds(), Description: w.Description,
		CreatedAt: instant(w.CreatedAt), UpdatedAt: instant(w.UpdatedAt),
	}
	if !w.Enabled {
		v.DisabledReason = &w.DisabledReason
	}
	now := a.o.Now()
	if w.PausedUntil.After(now) {
		v.PausedUntil = orNull(w.PausedUntil)
	}
	if v.Signatures = w.Signatures; len(v.Signatures) == 0 {
		v.Signatures = []hook.SignatureVersion{hook.SignatureV1}
	}
	v.Secrets, v.PublicKeys = []secretView{}, []publicKeyView{}
	for i := range w.Secrets {
		if s := &w.Secrets[i]; s.SignsAt(now) {
			v.Secrets = append(v.Secrets, secretView{CreatedAt: orNull(s.CreatedAt), Until: orNull(s.Until)})
		}
	}
	for i := range w.SigningKeys {
		if k := &w.SigningKeys[i]; k.SignsAt(now) {
			v.PublicKeys = append(v.PublicKeys, publicKeyView{ID: k.ID, Key: k.Public, CreatedAt: orNull(k.CreatedAt), Until: orNull(k.Until)})
		}
	}
	return v
}

type failureView struct {
	Kind    hook.FailureKind `json:"kind"`
	Message string           `json:"message"`
}

func failureOrNull(f *hook.Failure) *failureView {
	if f == nil {
		return nil
	}
	return &failureView{Kind: f.Kind, Message: f.Message}
}

// codeOrNull is null where no answer came.
func codeOrNull(code int) *int {
	if code == 0 {
		return nil
	}
	return &code
}

type lastAttemptView struct {
	At         instant      `json:"at"`
	StatusCode *int         `json:"statusCode"`
	Error      *failureView `json:"error"`
	DurationMS int64        `json:"durationMs"`
}

type deliveryView struct {
	ID            id.Delivery      `json:"id"`
	WebhookID     id.Webhook       `json:"webhookId"`
	EventID       string           `json:"eventId"`
	EventType     string           `json:"eventType"`
	Status        string           `json:"status"`
	Attempts      int              `json:"attempts"`
	NextAttemptAt *instant         `json:"nextAttemptAt"`
	CreatedAt     instant          `json:"createdAt"`
	CompletedAt   *instant         `json:"completedAt"`
	ExpiresAt     instant          `json:"expiresAt"`
	Error         *failureView     `json:"error"`
	LastAttempt   *lastAttemptView `json:"lastAttempt"`
}

func viewDelivery(d *hook.Delivery) deliveryView {
	v := deliveryView{
		ID: d.ID, WebhookID: d.Webhook, EventID: d.PublicEventID, EventType: d.EventType,
		Status: d.Status.String(), Attempts: d.Attempts, CreatedAt: instant(d.CreatedAt),
		ExpiresAt: instant(d.ExpiresAt), Error: failureOrNull(d.Failure),
	}
	if d.Status.Done() {
		v.CompletedAt = orNull(d.CompletedAt)
	} else {
		v.NextAttemptAt = orNull(d.Due)
	}
	if l := d.Last; l != nil {
		v.LastAttempt = &lastAttemptView{
			At: instant(l.At), StatusCode: codeOrNull(l.StatusCode),
			Error: failureOrNull(l.Failure), DurationMS: l.Duration.Milliseconds(),
		}
		// What ended the delivery, where it was no attempt, is in Failure.
		if v.Error == nil && d.Status == hook.StatusFailed {
			v.Error = v.LastAttempt.Error
		}
	}
	return v
}

func viewDeliveries(list []hook.Delivery) []deliveryView {
	out := make([]deliveryView, len(list))
	for i := range list {
		out[i] = viewDelivery(&list[i])
	}
	return out
}

type timingsView struct {
	DNS       float64 `json:"dns"`
	Connect   float64 `json:"connect"`
	TLS       float64 `json:"tls"`
	FirstByte float64 `json:"firstByte"`
}

type attemptView struct {
	Number     int           `json:"number"`
	Trigger    hook.Trigger  `json:"trigger"`
	StartedAt  instant       `json:"startedAt"`
	DurationMS int64         `json:"durationMs"`
	Timings    timingsView   `json:"timings"`
	Request    *requestView  `json:"request"`
	Response   *responseView `json:"response"`
	Error      *failureView  `json:"error"`
}

// requestView is a request as it was sent. It is made anew from the webhook's
// revision: only what differs between attempts is stored.
type requestView struct {
	Method  string            `json:"method"`
	URL     string            `json:"url"`
	Headers map[string]string `json:"headers"`
	bodyView
}

type responseView struct {
	StatusCode int               `json:"statusCode"`
	Headers    map[string]string `json:"headers"`
	bodyView
}

// bodyView is a body as text, or in base64 where it is none; of a long one, the
// beginning.
type bodyView struct {
	Body       *string `json:"body"`
	BodyBase64 *string `json:"bodyBase64,omitempty"`
	Truncated  bool    `json:"bodyTruncated"`
}

func viewBody(b []byte) bodyView {
	v := bodyView{}
	if len(b) > hook.MaxKeptBody {
		b, v.Truncated = b[:hook.MaxKeptBody], true
	}
	text := b
	if len(b) == hook.MaxKeptBody {
		// The cut may have gone through a character.
		text = wholeCharacters(b)
	}
	if utf8.Valid(text) {
		s := string(text)
		v.Body = &s
		return v
	}
	s := base64.StdEncoding.EncodeToString(b)
	v.BodyBase64 = &s
	return v
}

// wholeCharacters drops the beginning of a character at the end.
func wholeCharacters(b []byte) []byte {
	for cut := 1; cut < utf8.UTFMax && cut <= len(b); cut++ {
		if c := b[len(b)-cut]; utf8.RuneStart(c) {
			if !utf8.FullRune(b[len(b)-cut:]) {
				return b[:len(b)-cut]
			}
			break
		}
	}
	return b
}

func viewAttempt(at *hook.Attempt, request *requestView) attemptView {
	v := attemptView{
		Number: at.Number, Trigger: at.Trigger, StartedAt: instant(at.StartedAt), DurationMS: at.Duration.Milliseconds(),
		Timings: timingsView{
			DNS: milliseconds(at.Timings.DNS), Connect: milliseconds(at.Timings.Connect),
			TLS: milliseconds(at.Timings.TLS), FirstByte: milliseconds(at.Timings.FirstByte),
		},
		Request: request, Error: failureOrNull(at.Failure),
	}
	if at.StatusCode != 0 {
		v.Response = &responseView{StatusCode: at.StatusCode, Headers: viewHeaders(at.Header), bodyView: viewBody(at.Body)}
	}
	return v
}

// viewHeaders joins the values of each header (RFC 9110, 5.3).
func viewHeaders(h http.Header) map[string]string {
	out := make(map[string]string, len(h))
	for name, values := range h {
		out[name] = strings.Join(values, ", ")
	}
	return out
}

type eventView struct {
	ID        string         `json:"id"`
	Type      string         `json:"type"`
	Timestamp instant        `json:"timestamp"`
	Data      jsontext.Value `json:"data,omitzero"`
	Metadata  jsontext.Value `json:"metadata,omitzero"`
	CreatedAt instant        `json:"createdAt"`
}

// viewEvent shows an event; data and metadata are in its body, if it was read
// with one.
func viewEvent(e *hook.Event) eventView {
	v := eventView{ID: e.PublicID, Type: e.Type, Timestamp: instant(e.Timestamp), CreatedAt: instant(e.CreatedAt)}
	if len(e.Body) == 0 {
		return v
	}
	r := newReader()
	r.body = e.Body
	var none problems
	o, err := r.object(&none)
	if err != nil {
		return v // it was built here: this can't be
	}
	v.Data, v.Metadata = o.take("data"), o.take("metadata")
	return v
}

type keyView struct {
	ID         id.Key       `json:"id"`
	Name       string       `json:"name"`
	Hint       string       `json:"hint"`
	Scopes     []hook.Scope `json:"scopes"`
	CreatedAt  instant      `json:"createdAt"`
	ExpiresAt  *instant     `json:"expiresAt"`
	LastUsedAt *instant     `json:"lastUsedAt"`
	Key        string       `json:"key,omitempty"`
}

func viewKey(k *hook.APIKey) keyView {
	return keyView{
		ID: k.ID, Name: k.Name, Hint: k.Hint, Scopes: k.Scopes, CreatedAt: instant(k.CreatedAt),
		ExpiresAt: orNull(k.ExpiresAt), LastUsedAt: orNull(k.LastUsedAt),
	}
}

type tenantView struct {
	ID        id.Tenant `json:"id"`
	Name      string    `json:"name"`
	CreatedAt instant   `json:"createdAt"`
	UpdatedAt instant   `json:"updatedAt"`
}

func viewTenant(t *hook.Tenant) tenantView {
	return tenantView{ID: t.ID, Name: t.Name, CreatedAt: instant(t.CreatedAt), UpdatedAt: instant(t.UpdatedAt)}
}

type userView struct {
	ID          id.User   `json:"id"`
	Email       string    `json:"email"`
	Role        hook.Role `json:"role"`
	TenantID    id.Tenant `json:"tenantId"`
	CreatedAt   instant   `json:"createdAt"`
	UpdatedAt   instant   `json:"updatedAt"`
	LastLoginAt *instant  `json:"lastLoginAt"`
	Password    string    `json:"password,omitempty"`
}

func viewUser(u *hook.User) *userView {
	v := &userView{
		ID: u.ID, Email: u.Email, Role: u.Role, TenantID: u.Tenant,
		CreatedAt: instant(u.CreatedAt), UpdatedAt: instant(u.UpdatedAt), LastLoginAt: orNull(u.LastLoginAt),
	}
	if u.UpdatedAt.IsZero() {
		v.UpdatedAt = v.CreatedAt
	}
	return v
}

type sessionView struct {
	ID         id.Session `json:"id"`
	CreatedAt  instant    `json:"createdAt"`
	LastUsedAt instant    `json:"lastUsedAt"`
	ExpiresAt  instant    `json:"expiresAt"`
	Current    bool       `json:"current"`
}

func viewSession(s *hook.Session) sessionView {
	return sessionView{ID: s.ID, CreatedAt: instant(s.CreatedAt), LastUsedAt: instant(s.LastUsedAt), ExpiresAt: instant(s.ExpiresAt)}
}

type loginView struct {
	Token     string    `json:"token,omitempty"`
	ExpiresAt instant   `json:"expiresAt"`
	User      *userView `json:"user"`
}

type meView struct {
	User      *userView      `json:"user"`
	APIKey    *ownKeyView    `json:"apiKey"`
	Tenant    *ownTenantView `json:"tenant"`
	Scopes    []hook.Scope   `json:"scopes"`
	ExpiresAt *instant       `json:"expiresAt"`
}

type ownKeyView struct {
	ID   id.Key `json:"id"`
	Name string `json:"name"`
}

type ownTenantView struct {
	ID   id.Tenant `json:"id"`
	Name string    `json:"name"`
}

func viewMe(p *auth.Principal, t *hook.Tenant) meView {
	v := meView{Tenant: &ownTenantView{ID: t.ID, Name: t.Name}, Scopes: p.Scopes, ExpiresAt: orNull(p.ExpiresAt)}
	switch {
	case p.Session != nil:
		v.User = viewUser(&p.Session.User)
	case !p.Key.IsZero():
		v.APIKey = &ownKeyView{ID: p.Key, Name: p.KeyName}
	default: // it came by the admin socket
	}
	return v
}

type statsView struct {
	TotalDeliveries      int64       `json:"totalDeliveries"`
	SuccessfulDeliveries int64       `json:"successfulDeliveries"`
	FailedDeliveries     int64       `json:"failedDeliveries"`
	SuccessRate          float64     `json:"successRate"`
	PendingDeliveries    int64       `json:"pendingDeliveries"`
	LatencyMS            latencyView `json:"latencyMs"`
}

type latencyView struct {
	P50 float64 `json:"p50"`
	P95 float64 `json:"p95"`
	P99 float64 `json:"p99"`
}
