package send

// CloseIdle closes the connections that are idle, and forgets nothing.
func (s *Sender) CloseIdle() {
	s.idle.mu.Lock()
	kept := s.idle.empty()
	s.idle.mu.Unlock()
	for _, c := range kept {
		c.discard()
	}
	s.transports.mu.Lock()
	defer s.transports.mu.Unlock()
	for _, m := range s.transports.of {
		m.transport.CloseIdleConnections()
	}
}
