package api

import (
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
)

func TestClientAddress(t *testing.T) {
	ours := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	for _, tc := range []struct {
		name, remote string
		forwarded    []string
		proxies      []netip.Prefix
		want         string // "": none
	}{
		{"nobody is believed", "10.0.0.1:1", []string{"203.0.113.7"}, nil, "10.0.0.1"},
		{"no proxy", "203.0.113.7:1", nil, ours, "203.0.113.7"},
		{"a stranger says who it is", "203.0.113.7:1", []string{"198.51.100.1"}, ours, "203.0.113.7"},
		{"a stranger says that it is one of us", "203.0.113.7:1", []string{"10.0.0.1"}, ours, "203.0.113.7"},
		{"a proxy", "10.0.0.1:1", []string{"203.0.113.7"}, ours, "203.0.113.7"},
		{"a proxy that says nothing", "10.0.0.1:1", nil, ours, "10.0.0.1"},
		{"two proxies", "10.0.0.1:1", []string{"203.0.113.7, 10.0.0.2"}, ours, "203.0.113.7"},
		{"what the client put there itself", "10.0.0.1:1", []string{"198.51.100.1, 203.0.113.7"}, ours, "203.0.113.7"},
		{"likewise, of ours", "10.0.0.1:1", []string{"10.0.0.9, 203.0.113.7"}, ours, "203.0.113.7"},
		{"a line for each", "10.0.0.1:1", []string{"198.51.100.1", "203.0.113.7", "10.0.0.2"}, ours, "203.0.113.7"},
		{"one of us asks", "10.0.0.1:1", []string{"10.0.0.3"}, ours, "10.0.0.3"},
		{"all are ours", "10.0.0.1:1", []string{"10.0.0.3,10.0.0.2"}, ours, "10.0.0.3"},
		{"without a space", "10.0.0.1:1", []string{"198.51.100.1,203.0.113.7"}, ours, "203.0.113.7"},
		{"with a tab", "10.0.0.1:1", []string{"198.51.100.1,\t203.0.113.7 "}, ours, "203.0.113.7"},
		{"with a port", "10.0.0.1:1", []string{"203.0.113.7:5555"}, ours, "203.0.113.7"},
		{"IPv6", "[fd00::1]:1", []string{"2001:db8::7"}, ours, "2001:db8::7"},
		{"in brackets", "[fd00::1]:1", []string{"[2001:db8::7]"}, ours, "2001:db8::7"},
		{"with a port too", "[fd00::1]:1", []string{"[2001:db8::7]:5555"}, ours, "2001:db8::7"},
		{"a zone", "[fd00::1]:1", []string{"fe80::1%eth0"}, ours, "fe80::1"},
		{"mapped", "[::ffff:10.0.0.1]:1", []string{"::ffff:203.0.113.7"}, ours, "203.0.113.7"},
		{"mapped, between", "10.0.0.1:1", []string{"203.0.113.7, ::ffff:10.0.0.2"}, ours, "203.0.113.7"},
		{"a name", "10.0.0.1:1", []string{"unknown"}, ours, "10.0.0.1"},
		{"a name, behind what we know", "10.0.0.1:1", []string{"_hidden, 10.0.0.2"}, ours, "10.0.0.2"},
		{"what stands before a name", "10.0.0.1:1", []string{"203.0.113.7, evil, 10.0.0.2"}, ours, "10.0.0.2"},
		{"nothing", "10.0.0.1:1", []string{""}, ours, "10.0.0.1"},
		{"commas", "10.0.0.1:1", []string{"203.0.113.7,,"}, ours, "10.0.0.1"},
		{"a number", "10.0.0.1:1", []string{"3405803783"}, ours, "10.0.0.1"},
		{"octal", "10.0.0.1:1", []string{"0313.0.0161.7"}, ours, "10.0.0.1"},
		{"a broken port", "10.0.0.1:1", []string{"203.0.113.7:x"}, ours, "10.0.0.1"},
		{"no IP at all", "@", []string{"203.0.113.7"}, ours, ""},
	} {
		r := &http.Request{RemoteAddr: tc.remote, Header: http.Header{headerForwardedFor: tc.forwarded}}
		got := ""
		if addr := clientAddress(r, tc.proxies); addr.IsValid() {
			got = addr.String()
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestLoggedPath(t *testing.T) {
	long := "/" + strings.Repeat("a", 2*maxLoggedPath)
	for path, want := range map[string]string{
		"/services/webhooks/wh_01jd6c3v7genxa5fhm2rj8wq4t": "/services/webhooks/wh_01jd6c3v7genxa5fhm2rj8wq4t",
		"/services/api-keys/hypha_abc":                     "/services/api-keys/****",
		"/hyps_abc/whsec_abc/whsk_abc/x_y":                 "/****/****/****/x_y",
		"/":                                                "/",
		long:                                               long[:maxLoggedPath] + "…",
	} {
		if got := loggedPath(&http.Request{URL: &url.URL{Path: path}}); got != want {
			t.Errorf("%.40s: %q", path, got)
		}
	}
}
