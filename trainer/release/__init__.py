"""Which of the finished runs is the one to use: the champion, and who takes its place."""
