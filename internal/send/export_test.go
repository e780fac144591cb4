package send

// CloseIdle closes the connections that nobody uses.
func (s *Sender) CloseIdle() {
	s.pool.mu.Lock()
	kept := s.pool.empty()
	s.pool.mu.Unlock()
	for _, c := range kept {
		c.discard()
	}
}
