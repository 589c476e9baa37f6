"""What an adapted model gains and what it costs: tasks and graders, the measurement, its picture and its report.

load_task -> evaluate -> rows -> {write_results, results_table, tradeoff_picture, write_report}
"""
