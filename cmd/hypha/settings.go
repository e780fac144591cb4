package main

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/plinqx/hypha/internal/adminsocket"
	"github.com/plinqx/hypha/internal/api"
	"github.com/plinqx/hypha/internal/auth"
	"github.com/plinqx/hypha/internal/dispatch"
	"github.com/plinqx/hypha/internal/egress"
	"github.com/plinqx/hypha/internal/ratelimit"
	"github.com/plinqx/hypha/internal/retry"
	"github.com/plinqx/hypha/internal/seal"
	"github.com/plinqx/hypha/signature"
)

// settings are what the server can be told. Each is documented by its help.
type settings struct {
	Config string `help:"File with settings, in YAML." placeholder:"FILE"`

	Listen string `help:"Address to serve the API on." default:"127.0.0.1:8080" placeholder:"HOST:PORT"`

	TLSCert string `name:"tls-cert" help:"File with the certificate that the API is served with over TLS, and those that lead to its authority, in PEM. A new one is taken over when the file changes. Without it the API is served in the clear." placeholder:"FILE"`
	TLSKey  string `name:"tls-key" help:"File with the certificate's private key, in PEM." placeholder:"FILE"`

	MaxConnections           int `help:"Most connections to the API that are open at once; 0 is no limit." default:"10000" placeholder:"N"`
	MaxConnectionsPerAddress int `help:"Most of these from one IPv4 address or IPv6 network of 64 bits, unless that is a trusted proxy's; 0 is no limit." default:"2500" placeholder:"N"`

	Data string `help:"Folder of the embedded store and its keys. Not used with --database-url." default:"./hypha-data" placeholder:"DIR"`

	DatabaseURL string `help:"PostgreSQL database to keep everything in, such as postgres://user:password@host/database. Any number of servers may share one. It holds a password: give it as the variable HYPHA_DATABASE_URL." placeholder:"URL"`
	NodeName    string `help:"Name of this server among those that share a database. Default: the machine's." placeholder:"NAME"`

	adminSocketSetting

	SecretKey     string `help:"Key that seals secrets at rest, 64 hexadecimal digits. Several, with commas between them: the first one seals, the others open what was sealed before. Made in the data folder if not given; needed with --database-url, and the same for all servers. Better in a file." placeholder:"HEX"`
	SecretKeyFile string `help:"File with that key, or with several, one on each line. Nobody but its owner may read it." placeholder:"FILE"`

	PublicURL       string        `help:"Address that browsers reach this server at, such as https://hooks.example.com, if it is not the one they ask for: behind a proxy, say." placeholder:"URL"`
	SessionLifetime time.Duration `help:"How long a sign-in lasts, used or not." default:"24h" placeholder:"DURATION"`
	SessionIdle     time.Duration `help:"How long a sign-in lasts without being used." default:"2h" placeholder:"DURATION"`

	OIDCIssuer       string `name:"oidc-issuer" help:"OpenID provider that people may sign in through, such as https://accounts.example.com. Off if not given." placeholder:"URL"`
	OIDCClientID     string `name:"oidc-client-id" help:"What the OpenID provider knows this server by." placeholder:"ID"`
	OIDCClientSecret string `name:"oidc-client-secret" help:"The client's secret at the OpenID provider. Give it as the variable HYPHA_OIDC_CLIENT_SECRET." placeholder:"SECRET"`
	OIDCRedirectURL  string `name:"oidc-redirect-url" help:"Where the OpenID provider sends browsers back to. Default: /services/auth/oidc/callback at --public-url." placeholder:"URL"`

	AllowEgress []string `help:"Networks that webhooks may reach although they are not public, such as 127.0.0.0/8 on a laptop." placeholder:"CIDR"`
	DenyEgress  []string `help:"Networks that webhooks may never reach. Stronger than --allow-egress." placeholder:"CIDR"`
	EgressPorts string   `help:"Ports that webhooks may reach." default:"80,443,1024-65535" placeholder:"PORTS"`
	EgressProxy string   `help:"Proxy that webhooks are reached through, such as http://user:password@proxy.example.com:3128; https:// and socks5:// too. It decides what names lead to. With a password in it, give it as the variable HYPHA_EGRESS_PROXY." placeholder:"URL"`

	HeaderPrefix  string         `help:"Prefix of the product's own headers." default:"X-Plinqx" placeholder:"NAME"`
	RetrySchedule retry.Schedule `help:"Delays after each failed try; a delivery gets one try more." default:"5s,5m,30m,2h,5h,10h,10h" placeholder:"DURATIONS"`
	MaxAge        time.Duration  `help:"How long a delivery may stay unfinished before it is given up." default:"168h" placeholder:"DURATION"`

	TrustedProxies []string `help:"Networks of proxies in front of this server, such as 10.0.0.0/8: whom they name in X-Forwarded-For is believed to be the client." placeholder:"CIDR"`
	RequestRate    float64  `help:"Most requests a second of one API key or user, besides publishing; ten times as many at once. Operators are not held by this and the next two. 0 is no limit, here as there." default:"500" placeholder:"N"`
	EventRate      float64  `help:"Most events a second that one API key or user publishes; ten times as many at once." default:"0" placeholder:"N"`
	ChangeRate     float64  `help:"Most changes a second in one tenant, each of which is an entry in the audit log; 500 times as many at once." default:"20" placeholder:"N"`
	StrangerRate   float64  `help:"Most requests a second without a valid credential from one network (an IPv4 address, a /64 of IPv6); ten times as many at once." default:"100" placeholder:"N"`

	MaxEventBytes int64 `help:"Largest event that may be published, in bytes." default:"1048576" placeholder:"BYTES"`
	MaxBatchBytes int64 `help:"Largest batch of events that may be published, in bytes." default:"16777216" placeholder:"BYTES"`
	MaxQueued     int64 `help:"Most unfinished deliveries of a tenant, beyond which publishing is refused; 0 is no limit." default:"10000000" placeholder:"N"`
	MaxWebhooks   int   `help:"Most webhooks of a tenant; 0 is no limit." default:"20000" placeholder:"N"`

	Slots       int           `help:"Most attempts in flight at once." default:"1024" placeholder:"N"`
	LaneMemory  int           `help:"Most memory for deliveries that wait to be sent, in bytes; the rest waits on disk." default:"33554432" placeholder:"BYTES"`
	HistoryAge  time.Duration `help:"How long history is kept." default:"720h" placeholder:"DURATION"`
	HistorySize int64         `help:"How large history may grow, in bytes; the oldest goes first." default:"10737418240" placeholder:"BYTES"`
	AuditAge    time.Duration `help:"How long the audit log is kept: who changed what." default:"9600h" placeholder:"DURATION"`

	DebugListen string `help:"Address to serve Go's profiles on. They show memory: keep it to yourself. Off if not given." placeholder:"HOST:PORT"`

	LogLevel  slog.Level `help:"Least level that is logged: debug, info, warn or error." default:"info" placeholder:"LEVEL"`
	LogFormat string     `help:"Form of the log: text or json." default:"text" enum:"text,json" placeholder:"FORMAT"`
}

// maxSessionLifetime is when everybody has to sign in again.
const maxSessionLifetime = 90 * 24 * time.Hour

// callbackPath is where the OpenID provider sends browsers back to.
const callbackPath = "/services/auth/oidc/callback"

// redirectURL is where the OpenID provider sends browsers back to.
func (s *settings) redirectURL() string {
	if s.OIDCRedirectURL != "" {
		return s.OIDCRedirectURL
	}
	return strings.TrimRight(s.PublicURL, "/") + callbackPath
}

// checkProvider says what is wrong with the OpenID provider's settings.
func (s *settings) checkProvider() map[string]error {
	problems := map[string]error{}
	issuer, err := url.Parse(s.OIDCIssuer)
	if err != nil || issuer.Host == "" || issuer.User != nil || issuer.RawQuery != "" || issuer.Fragment != "" || !secure(issuer) {
		problems["oidc-issuer"] = fmt.Errorf("%q is not an address such as https://accounts.example.com", s.OIDCIssuer)
	}
	if s.OIDCClientID == "" {
		problems["oidc-client-id"] = errors.New("is needed with --oidc-issuer: the provider gives it when you register this server there")
	}
	if s.OIDCRedirectURL == "" && s.PublicURL == "" {
		problems["public-url"] = errors.New("is needed with --oidc-issuer (or --oidc-redirect-url is): browsers are sent back there")
	}
	if s.OIDCRedirectURL != "" {
		back, err := url.Parse(s.OIDCRedirectURL)
		if err != nil || back.Host == "" || back.Scheme != "http" && back.Scheme != "https" || !strings.HasSuffix(back.Path, callbackPath) {
			problems["oidc-redirect-url"] = fmt.Errorf("%q is not an address that ends in %s", s.OIDCRedirectURL, callbackPath)
		}
	}
	return problems
}

// secure reports whether what is said to an address can't be read on the way.
func secure(u *url.URL) bool {
	if u.Scheme == "http" {
		ip, err := netip.ParseAddr(u.Hostname())
		return u.Hostname() == "localhost" || err == nil && ip.IsLoopback()
	}
	return u.Scheme == "https"
}

// trust lets pages of an address ask for what is refused to those of other sites.
func trust(p *http.CrossOriginProtection, address string) error {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return fmt.Errorf("%q is not an address such as https://hooks.example.com, without a path", address)
	}
	return p.AddTrustedOrigin(u.Scheme + "://" + u.Host)
}

// maxRate is the largest rate that may be set, a second: more than any server does.
const maxRate = 1_000_000

// rateLimits are what the API holds everybody to.
func (s *settings) rateLimits() api.RateLimits {
	of := func(perSecond float64, burst int) ratelimit.Rate {
		return ratelimit.Rate{PerSecond: perSecond, AtOnce: int(math.Ceil(perSecond * float64(burst)))}
	}
	return api.RateLimits{
		Requests: of(s.RequestRate, 10), Events: of(s.EventRate, 10), Strangers: of(s.StrangerRate, 10),
		// Somebody who sets up a tenant makes many changes, and then few.
		Changes: of(s.ChangeRate, 500),
	}
}

// checked are the settings that need reading, read.
type checked struct {
	allow, deny []netip.Prefix
	proxies     []netip.Prefix
	ports       egress.Ports
	proxy       *egress.Proxy // nil for none
	prefix      signature.Prefix
	secretKeys  [][]byte // nil if they are to be in the data folder
	crossOrigin *http.CrossOriginProtection
}

// check reports all that is wrong with the settings together.
func (s *settings) check() (c checked, err error) {
	var problems []error
	note := func(setting string, err error) {
		if err != nil {
			problems = append(problems, fmt.Errorf("--%s: %w", setting, err))
		}
	}
	parse := func(setting string, list []string) (out []netip.Prefix) {
		for _, text := range list {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				note(setting, fmt.Errorf("%q is not a network such as 10.0.0.0/8 or fd00::/8", text))
				continue
			}
			out = append(out, p)
		}
		return out
	}
	c.allow = parse("allow-egress", s.AllowEgress)
	c.deny = parse("deny-egress", s.DenyEgress)
	c.proxies = parse("trusted-proxies", s.TrustedProxies)
	for _, p := range c.proxies {
		if p.Bits() == 0 {
			note("trusted-proxies", fmt.Errorf("%s is everybody: whoever asks could then pretend to be anybody; give the networks that your proxies ask from", p))
		}
	}
	rate := func(setting string, perSecond float64) {
		if !(perSecond >= 0 && perSecond <= maxRate) { // also what is no number
			note(setting, fmt.Errorf("must be from 0, which is no limit, to %d a second, and is %v", maxRate, perSecond))
		}
	}
	rate("request-rate", s.RequestRate)
	rate("event-rate", s.EventRate)
	rate("change-rate", s.ChangeRate)
	rate("stranger-rate", s.StrangerRate)
	c.ports, err = egress.ParsePorts(s.EgressPorts)
	note("egress-ports", err)
	if s.EgressProxy != "" {
		c.proxy, err = egress.ParseProxy(s.EgressProxy)
		note("egress-proxy", err)
	}
	c.prefix, err = signature.ParsePrefix(s.HeaderPrefix)
	note("header-prefix", err)
	if s.AdminSocket != "" {
		note("admin-socket", adminsocket.CheckPath(s.adminSocket()))
	}
	c.crossOrigin = http.NewCrossOriginProtection()
	if s.PublicURL != "" {
		note("public-url", trust(c.crossOrigin, s.PublicURL))
	}
	if s.OIDCIssuer+s.OIDCClientID+s.OIDCClientSecret+s.OIDCRedirectURL != "" {
		for setting, err := range s.checkProvider() {
			note(setting, err)
		}
	}
	switch {
	case s.SecretKey != "" && s.SecretKeyFile != "":
		note("secret-key-file", errors.New("is given, and so is --secret-key: give one of them, with all keys"))
	case s.SecretKey != "":
		c.secretKeys, err = seal.ParseKeys(s.SecretKey)
		note("secret-key", err)
	case s.SecretKeyFile != "":
		c.secretKeys, err = seal.ReadFile(s.SecretKeyFile)
		note("secret-key-file", err)
	case s.DatabaseURL != "":
		note("secret-key", errors.New("is needed with --database-url, and the same for every server that shares the database; the first time, make one: openssl rand -hex 32 (or --secret-key-file names a file with it)"))
	default:
	}
	atLeast := func(setting string, value, lowest int64) {
		if value < lowest {
			note(setting, fmt.Errorf("must be at least %d, and is %d", lowest, value))
		}
	}
	atLeast("max-event-bytes", s.MaxEventBytes, 1024)
	atLeast("max-batch-bytes", s.MaxBatchBytes, s.MaxEventBytes)
	atLeast("max-connections", int64(s.MaxConnections), 0)
	atLeast("max-connections-per-address", int64(s.MaxConnectionsPerAddress), 0)
	if s.TLSCert == "" && s.TLSKey != "" {
		note("tls-cert", errors.New("is needed with --tls-key: the certificate that the key is of"))
	}
	if s.TLSCert != "" && s.TLSKey == "" {
		note("tls-key", errors.New("is needed with --tls-cert: the private key of the certificate"))
	}
	atLeast("max-queued", s.MaxQueued, 0)
	atLeast("max-webhooks", int64(s.MaxWebhooks), 0)
	atLeast("slots", int64(s.Slots), 1)
	atLeast("lane-memory", int64(s.LaneMemory), 1<<20)
	atLeast("history-size", s.HistorySize, 64<<20)
	if s.MaxAge < time.Minute || s.MaxAge > 4*dispatch.DefaultMaxAge {
		note("max-age", errors.New("must be from a minute to 28 days"))
	}
	if s.SessionIdle < auth.MinSessionIdle {
		note("session-idle", fmt.Errorf("must be %s at least", auth.MinSessionIdle))
	}
	if s.SessionLifetime < s.SessionIdle || s.SessionLifetime > maxSessionLifetime {
		note("session-lifetime", errors.New("must be from --session-idle to 90 days"))
	}
	if s.HistoryAge < time.Hour {
		note("history-age", errors.New("must be an hour at least"))
	}
	if s.AuditAge < 24*time.Hour {
		note("audit-age", errors.New("must be a day at least: 24h"))
	}
	return c, errors.Join(problems...)
}
