colourText(surpriseLevel);
surpriseLegend();
moveCursor(0, false);
