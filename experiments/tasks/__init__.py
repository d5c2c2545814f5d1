"""The tasks that tell recurrent cells apart: state tracking, selection, recall and long memory."""
