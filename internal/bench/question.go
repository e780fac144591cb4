package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

const (
	// askedTimes is how often each question is asked.
	askedTimes = 300

	// deepPages pages of deepLimit rows are passed over to be deep inside a
	// list, or as many as there are.
	deepPages = 200
	deepLimit = 1000

	// followedPages is how many pages are read one after another before it
	// begins anew.
	followedPages = 20
)

// A question is a kind of request about the history.
type question struct {
	label string
	path  string // one that is read page by page must be pathDeliveries, and a cursor maybe
	// pages is how many pages are read one after another; 0 asks for the same
	// one every time.
	pages int
}

// A listPage is a page of any list.
type listPage struct {
	Data       []json.RawMessage `json:"data"`
	NextCursor string            `json:"nextCursor"`
}

const (
	pathDeliveries = "/services/webhooks/deliveries?limit=50"
	pathFailed     = "/services/webhooks/deliveries/failed?limit=50"
)

// questions are what is asked. To find a place deep inside a list, it is read
// up to there.
func (h *history) questions(ctx context.Context, s *subject) ([]question, error) {
	var webhooks struct {
		Data []struct {
			ID string `json:"id"`
		} `json:"data"`
	}
	if err := s.get(ctx, "/services/webhooks?limit=1", &webhooks); err != nil {
		return nil, err
	}
	if len(webhooks.Data) == 0 {
		return nil, errors.New("the store has no webhooks")
	}
	middle := h.seeded.From.Add(h.seeded.Until.Sub(h.seeded.From) / 2)
	kinds := []question{
		{label: "stats", path: "/services/webhooks/stats"},
		{label: "failed", path: pathFailed + "&offset=0"},
		{label: "failed, offset 1000", path: pathFailed + "&offset=1000"},
		{label: "failed, offset 10000", path: pathFailed + "&offset=10000"},
		{label: "deliveries", path: pathDeliveries},
		{label: fmt.Sprintf("deliveries, %d pages", followedPages), path: pathDeliveries, pages: followedPages},
		{label: "deliveries until the middle", path: pathDeliveries + "&until=" + apiTime(middle)},
		{label: "deliveries of a webhook", path: "/services/webhooks/" + webhooks.Data[0].ID + "/deliveries?limit=50"},
	}
	cursor, rows := "", 0
	for range deepPages {
		var page listPage
		path := fmt.Sprintf("/services/webhooks/deliveries?limit=%d", deepLimit)
		if cursor != "" {
			path += "&cursor=" + cursor
		}
		if err := s.get(ctx, path, &page); err != nil {
			return nil, err
		}
		if page.NextCursor == "" {
			break
		}
		cursor, rows = page.NextCursor, rows+len(page.Data)
	}
	if cursor != "" {
		kinds = append(kinds, question{
			label: fmt.Sprintf("deliveries, %d rows deep", rows), path: pathDeliveries + "&cursor=" + cursor, pages: followedPages,
		})
	}
	return kinds, nil
}

// ask asks one question often, on one connection, and adds how long the answers
// took.
func (h *history) ask(ctx context.Context, s *subject, phase string, q question) error {
	transport := &http.Transport{MaxIdleConnsPerHost: 1}
	defer transport.CloseIdleConnections()
	var took histogram
	path, left := q.path, q.pages // pages to read before it begins anew
	for range askedTimes {
		answer, d, err := s.timed(ctx, transport, path)
		if err != nil {
			return fmt.Errorf("%s: GET %s: %w", phase, path, err)
		}
		took.record(d)
		if q.pages == 0 {
			continue
		}
		var page listPage
		if err := json.Unmarshal(answer, &page); err != nil {
			return fmt.Errorf("%s: GET %s: %w: %.300s", phase, path, err, answer)
		}
		if left--; page.NextCursor == "" || left == 0 {
			path, left = q.path, q.pages
			continue
		}
		path = pathDeliveries + "&cursor=" + page.NextCursor
	}
	h.sr.Requests = append(h.sr.Requests, RequestReport{Phase: phase, Request: q.label, Count: took.n, LatencyMs: took.latency()})
	return nil
}

// timed reads an answer of 200 and says how long that took.
func (s *subject) timed(ctx context.Context, transport *http.Transport, path string) ([]byte, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	target, err := s.base().Parse(path)
	if err != nil {
		return nil, 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), http.NoBody)
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("Authorization", "Bearer "+s.key)
	begin := time.Now()
	res, err := transport.RoundTrip(req)
	if err != nil {
		return nil, 0, err
	}
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxWireBody))
	took := time.Since(begin)
	if err = errors.Join(err, res.Body.Close()); err != nil {
		return nil, 0, err
	}
	if res.StatusCode != http.StatusOK {
		return nil, 0, fmt.Errorf("the server answered %d: %.300s", res.StatusCode, answer)
	}
	return answer, took, nil
}
